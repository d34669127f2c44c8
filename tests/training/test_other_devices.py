"""What training does on a GPU, on CPU tensors: the branches that wait for nothing."""

from typing import Any

import pytest
import torch

from tests.faults.test_training_step import tiny_stepper
from yt8m_assets.data.dataset.loading import read_ahead
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.optimizer import clip_gradients, gradient_norms
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.trainer import LossMeter

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Elsewhere(torch.Tensor):
    """A tensor in this memory that says it lies on a GPU; so does what is computed from it."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def elsewhere(tensor: torch.Tensor) -> Any:
    return tensor.clone().as_subclass(Elsewhere)


def on_gpu(stepper: Stepper) -> None:
    """Let a stepper judge its steps as on a GPU, which it computes here."""
    for name in ("judge", "check"):
        method = getattr(stepper, name)

        def judged(*arguments: Any, method: Any = method) -> None:
            stepper.device = CUDA
            try:
                method(*arguments)
            finally:
                stepper.device = CPU

        setattr(stepper, name, judged)


def test_a_bad_step_blocks_itself_and_all_later_ones_until_the_check_names_it() -> None:
    model, stepper, batch = tiny_stepper()
    on_gpu(stepper)
    stepper.run(batch, 0, 0.1)
    stepper.check()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {name: value.clone() for name, value in stepper.optimizer.state_tensors().items()}
    model.poison = float("nan")
    stepper.run(batch, 1, 0.1)
    model.poison = 1.0
    stepper.run(batch, 2, 0.1)
    model.poison = float("inf")
    stepper.run(batch, 3, 0.1)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(stepper.optimizer.state_tensors()[name], value) for name, value in moments.items())
    with pytest.raises(
        NonFiniteError, match=r"step 2 \(batch 1, rank 0\): loss is nan.*videos of the batch: good, evil"
    ):
        stepper.check()


def test_good_steps_are_those_of_a_cpu() -> None:
    (one, here, batch), (other, there, _) = tiny_stepper(), tiny_stepper()
    on_gpu(there)
    for step in range(3):
        here.run(batch, step, 0.1)
        there.run(batch, step, 0.1)
        there.check()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value)
    assert not torch.equal(one.scale, torch.ones(4))


@pytest.mark.parametrize("clip", ["per_variable", "global", "none"])
def test_clipping_is_that_of_a_cpu(clip: Any) -> None:
    config = TrainingConfig(num_steps=1, clip=clip)
    generator = torch.Generator().manual_seed(0)
    here = [torch.randn(5, 3, generator=generator), torch.randn(4, generator=generator) * 0.01, torch.zeros(2)]
    there = [elsewhere(value) for value in here]
    assert type(gradient_norms(there)) is Elsewhere
    norms, others = clip_gradients(here, config), clip_gradients(there, config)
    torch.testing.assert_close(others.as_subclass(torch.Tensor), norms)
    for value, other in zip(here, there, strict=True):
        torch.testing.assert_close(other.as_subclass(torch.Tensor), value)
    assert float(norms[0]) > 1
    if clip != "none":
        assert float(here[0].norm()) <= 1.0001


def test_numbers_on_their_way_are_read_when_they_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    empty_like = torch.empty_like

    class Event:
        def record(self) -> None:
            calls.append("recorded")

        def synchronize(self) -> None:
            calls.append("waited")

    def pinned(values: torch.Tensor, *, device: str, pin_memory: bool) -> torch.Tensor:
        calls.append(f"{device} pinned {pin_memory}")
        return empty_like(values.as_subclass(torch.Tensor))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty_like", pinned)
    pending = Arriving(elsewhere(torch.tensor([0.5, 0.25])))
    assert calls == ["cpu pinned True", "recorded"]
    assert pending.get().tolist() == [0.5, 0.25]
    assert calls[-1] == "waited"


def test_a_gpu_sums_losses_in_float32() -> None:
    assert LossMeter(torch.device("meta")).total.dtype == torch.float32
    assert LossMeter(CPU).total.dtype == torch.float64


def test_blocks_are_read_ahead_in_order_and_errors_arrive() -> None:
    blocks: Any = iter(range(7))
    assert list(read_ahead(iter(blocks), 2)) == list(range(7))

    def broken() -> Any:
        yield 1
        raise OSError("the shard is gone")

    ahead = read_ahead(broken(), 2)
    assert next(ahead) == 1  # type: ignore[comparison-overlap]
    with pytest.raises(OSError, match="the shard is gone"):
        next(ahead)
