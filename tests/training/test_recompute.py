"""Activation checkpointing changes no bit, and saves what it promises at full width and length."""

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import create_model, next_vlad
from tests.models.small import SIZES, small_model
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.recompute import parts, recompute_activations

SPARING = TrainingConfig(num_steps=1, activation_checkpointing=True)
NETVLAD, MIX, BERT = "gated_netvlad_h1024c16", "mix_nextvlad_iter60", "bert_cross_attn_l2h8"


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, of those made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return result

    def forget(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.now -= size


def inputs(batch_size: int, num_steps: int, sizes: tuple[int, int], num_classes: int, num_drawn: int) -> list[Any]:
    frames = torch.randint(0, 256, (batch_size, num_steps, sum(sizes)), dtype=torch.uint8)
    valid = torch.ones(batch_size, num_steps, dtype=torch.bool)
    index = torch.randint(0, num_steps, (batch_size, num_drawn))
    labels = torch.zeros(batch_size, num_classes)
    return [frames, valid, torch.full((batch_size,), num_steps), labels, None, index]


def memory_by_example(key: str, sparing: bool, **options: Any) -> list[float]:
    """Bytes that a step keeps for an example between its passes, and its highest point, without inputs and weights."""
    found = []
    with FakeTensorMode():  # sizes alone: nothing is computed
        model = create_model(key, **options).train()
        if sparing:
            recompute_activations(model)
        objective = Objective(model, SPARING if sparing else TrainingConfig(num_steps=1))
        drawn = model.num_sampled_frames
        for batch_size in (1024, 2048):
            arguments = inputs(batch_size, 300 if "vlad" in key else drawn, (1024, 128), 3862, drawn)
            model.zero_grad()
            with Live() as live:
                total, _ = objective(*arguments)
                kept = live.now
                total.backward()
            found.append((kept, live.peak))
    return [(more - less) / 1024 for less, more in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("key", "most_kept", "highest"),
    [
        pytest.param("mix_nextvlad_iter300", 0.1, 0.5, marks=pytest.mark.slow),
        pytest.param(NETVLAD, 0.2, 0.95, marks=pytest.mark.slow),
        (BERT, 0.5, 0.75),
    ],
)
def test_memory_by_example_at_full_width_and_length(
    key: str, most_kept: float, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 frames; NetVLAD's highest point is one float32 copy of the frames, which its first product needs whole."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **options: tensor)  # reads values, which are not there
    options = {"num_sampled_frames": 300} if key == NETVLAD else {}
    (kept, peak), (kept_sparing, peak_sparing) = (memory_by_example(key, flag, **options) for flag in (False, True))
    assert kept_sparing < most_kept * kept
    assert peak_sparing < highest * peak


def test_frames_that_are_not_drawn_cost_no_float32_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default GatedNetVLAD draws 5 of 300 frames; a float32 copy of all is 1.38 MB."""
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **options: tensor)
    assert memory_by_example(NETVLAD, sparing=True)[1] < 0.5 * 300 * 1152 * 4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("key", [BERT, NETVLAD, MIX, "branches one by one"])
def test_results_gradients_and_statistics_stay(key: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if key == "branches one by one":
        monkeypatch.setattr(next_vlad, "MANY_FRAMES", 1)
        key = MIX
    plain = small_model(key).train()
    sparing = copy.deepcopy(plain)
    recompute_activations(sparing)
    assert list(sparing.state_dict()) == list(plain.state_dict())
    drawn = plain.num_sampled_frames
    arguments = inputs(4, 8, SIZES, 20, drawn)
    losses = []
    for model, config in ((plain, TrainingConfig(num_steps=1)), (sparing, SPARING)):
        with torch.random.fork_rng(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            torch.manual_seed(0)
            losses.append(Objective(model, config)(*arguments)[0])
            torch.manual_seed(1)  # other draws in between
        losses[-1].backward()
    assert torch.equal(losses[0], losses[1])
    for (name, first), (_, second) in zip(plain.named_parameters(), sparing.named_parameters(), strict=True):
        assert torch.equal(first.grad, second.grad), name  # type: ignore[arg-type]
    for (name, before), (_, after) in zip(plain.named_buffers(), sparing.named_buffers(), strict=True):
        assert torch.equal(before, after), name
    with torch.no_grad():
        expected = Objective(plain.eval(), TrainingConfig(num_steps=1))(*arguments)[0]
        assert torch.equal(Objective(sparing.eval(), SPARING)(*arguments)[0], expected)


def test_a_models_parts_are_its_layers_or_what_knows_itself() -> None:
    bert, mix = small_model("bert_l3h12"), small_model("mix_nextvlad_iter60")
    assert [type(part).__name__ for part in parts(bert)] == ["EncoderLayer"] * 3 + ["MixtureOfExpertsHead"]
    assert "NextVlad" in {type(part).__name__ for part in parts(mix)}
    assert list(parts(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))) == []
