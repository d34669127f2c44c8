"""Rows F12, F13 and F51 of the failure matrix, on single training steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.support import MIX
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.errors import NonFiniteError, OutOfMemoryError
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.optimizer import Optimizer
from yt8m_assets.training.step import Stepper, memory_remedies


class Tiny(nn.Module):
    """A model with batch norm whose probabilities come straight from its inputs."""

    sampling = "sequence"

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.poison = 1.0

    def sample_frame_index(self, num_frames: torch.Tensor, generator: torch.Generator) -> None:
        return None

    def forward(self, frames: torch.Tensor, num_frames: torch.Tensor, frame_index: Any = None) -> Any:
        from models import ModelOutput

        hidden = self.norm(frames.mean(1)) * self.scale
        return ModelOutput((hidden * self.poison).sigmoid(), torch.zeros(()))

    def l2_terms(self) -> list[tuple[torch.Tensor, float]]:
        return []


def tiny_stepper(**changes: Any) -> tuple[Tiny, Stepper, Batch]:
    config = replace(MIX.pretraining, **({"batch_size": 2} | changes))
    model, size = Tiny(), config.batch_size
    optimizer = Optimizer(dict(model.named_parameters()), config)
    stepper = Stepper(Objective(model, config), optimizer, config, device=torch.device("cpu"), seed=0)
    batch = Batch(
        frames=torch.randint(0, 255, (size, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        valid=torch.ones(size, 3, dtype=torch.bool),
        num_frames=torch.full((size,), 3),
        labels=torch.ones(size, 4),
        label_weights=None,
        video_ids=("good", "evil") * (size // 2),
        starts=torch.zeros(size, dtype=torch.int64),
    )
    return model, stepper, batch


def test_f12_a_non_finite_loss_stops_before_the_step() -> None:
    model, stepper, batch = tiny_stepper()
    stepper.run(batch, 0, 0.1)
    before = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    moments = {name: value.clone() for name, value in stepper.optimizer.state_tensors().items()}
    model.poison = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"step 2 \(batch 1, rank 0\): loss is nan.*videos of the batch: good, evil"
    ):
        stepper.run(batch, 1, 0.1)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(stepper.optimizer.state_tensors()[name], value) for name, value in moments.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_f12_a_bad_micro_batch_in_the_middle_leaves_no_trace(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three batches of two micro-batches the second's second is bad: the third goes on as if there had been none."""
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    options = {"batch_size": 4, "accumulation": 2, "compile": compiled}
    (model, stepper, batch), (whole, other, _) = tiny_stepper(**options), tiny_stepper(**options)
    forward, calls = model.forward, []

    def poisoned(*arguments: Any, **options: Any) -> Any:
        calls.append(len(calls))
        model.poison = float("nan") if len(calls) == 4 else 1.0
        return forward(*arguments, **options)

    monkeypatch.setattr(model, "forward", poisoned)
    first = stepper.run(batch, 0, 0.1)
    with pytest.raises(NonFiniteError, match=r"step 2 \(batch 1, rank 0\): loss is nan"):
        stepper.run(batch, 1, 0.1)
    third = stepper.run(batch, 2, 0.1)
    assert [float(first), float(third)] == [float(other.run(batch, step, 0.1)) for step in (0, 2)]
    assert (len(calls), stepper.compiled.enabled) == (6, compiled), "the compiler is not to blame for a bad number"
    assert same_values(model.state_dict(), whole.state_dict())
    assert same_values(stepper.optimizer.state_tensors(), other.optimizer.state_tensors())


def same_values(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_f13_an_infinite_gradient_under_a_finite_loss_stops_before_the_step() -> None:
    model, stepper, batch = tiny_stepper()
    before = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    handle = model.scale.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"loss is \d.*the gradient of scale is not finite; weights are unchanged"):
        stepper.run(batch, 0, 0.1)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    handle.remove()
    stepper.run(batch, 0, 0.1)
    assert not torch.equal(model.scale, before["scale"])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
@pytest.mark.parametrize("place", ["forward", "apply"])
@pytest.mark.parametrize("compiled", [False, True])
def test_f51_out_of_memory_says_what_to_lower(
    error: Exception, place: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the model, compiled or not, and in the update."""
    model, stepper, batch = tiny_stepper()
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    stepper.compiled.enabled = compiled

    def exhausted(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(model if place == "forward" else stepper.optimizer, place, exhausted)
    with pytest.raises(
        OutOfMemoryError, match=r"2 examples a forward pass .*raise accumulation \(now 1\), lower batch"
    ):
        stepper.run(batch, 0, 0.1)
    assert stepper.compiled.enabled is compiled


def test_f51_only_what_can_still_help_is_advised() -> None:
    config = replace(MIX.pretraining, batch_size=8, num_processes=2)

    def advice(**changes: Any) -> list[str]:
        return memory_remedies(replace(config, **changes))

    checkpointing = "set activation_checkpointing=True"
    assert advice() == ["raise accumulation (now 1)", "lower batch_size (now 8)", checkpointing]
    assert advice(sync_batchnorm=True) == ["lower batch_size (now 8)", checkpointing]
    assert advice(activation_checkpointing=True) == ["raise accumulation (now 1)", "lower batch_size (now 8)"]
    assert advice(accumulation=4) == [checkpointing]
    assert advice(accumulation=4, activation_checkpointing=True) == []


def test_f51_a_real_allocation_failure_is_recognised() -> None:
    model, stepper, batch = tiny_stepper()

    def greedy(*arguments: Any, **options: Any) -> Any:
        return torch.empty(2**60, dtype=torch.uint8)

    model.forward = greedy  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError, match="set activation_checkpointing=True"):
        stepper.run(batch, 0, 0.1)
