"""What training does on a GPU, on CPU tensors: the branches that wait for nothing."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.faults.test_training_step import tiny_stepper
from yt8m_assets.data.dataset.loading import read_ahead
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.training import optimizer as optimizer_module
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.optimizer import Optimizer, clip_gradients, gradient_norms
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


@pytest.mark.parametrize("large", [1, 8, 2**18])
@pytest.mark.parametrize("clip", ["per_variable", "global", "none"])
def test_clipping_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch, clip: Any, large: int) -> None:
    """Small gradients are clipped in place, large ones by what the update divides them by."""
    monkeypatch.setattr(optimizer_module, "LARGE", large)
    config = TrainingConfig(num_steps=1, clip=clip)
    generator = torch.Generator().manual_seed(0)
    here = [torch.randn(5, 3, generator=generator), torch.randn(4, generator=generator) * 0.01, torch.zeros(2)]
    there = [elsewhere(value) for value in here]
    assert type(gradient_norms(there)) is Elsewhere
    (norms, none), (others, divisors) = clip_gradients(here, config), clip_gradients(there, config)
    assert none is None
    assert (divisors is None) is (clip == "none")
    torch.testing.assert_close(others.as_subclass(torch.Tensor), norms)
    for number, (value, other) in enumerate(zip(here, there, strict=True)):
        if divisors is not None and value.numel() >= large:
            other = other / divisors[number]
        torch.testing.assert_close(other.as_subclass(torch.Tensor), value)
    assert float(norms[0]) > 1
    if clip != "none":
        assert float(here[0].norm()) <= 1.0001


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_update_is_that_of_a_cpu_and_asks_the_device_for_nothing(
    monkeypatch: pytest.MonkeyPatch, decay: float
) -> None:
    """A GPU's form of Adam: rate and corrections in its memory, large gradients divided as they are read."""
    monkeypatch.setattr(optimizer_module, "LARGE", 8)
    config = TrainingConfig(num_steps=1, optimizer="adamw" if decay else "adam", weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    values = {"matrix": torch.randn(5, 3, generator=generator), "vector": torch.randn(3, generator=generator)}
    here, there = ({name: nn.Parameter(value.clone()) for name, value in values.items()} for _ in range(2))
    one, other = Optimizer(here, config), Optimizer(there, config)
    other.corrected = elsewhere(other.corrected)
    for _ in range(5):
        for name, parameter in here.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 4
            there[name].grad = parameter.grad.clone()
        divisors = torch.tensor([4.0, 1.0])
        here["matrix"].grad /= 4  # type: ignore[operator]
        one.begin(0.1)
        one.apply()
        other.begin(0.1)
        with Calls() as calls:
            other.apply(torch.zeros(()), divisors)
        assert {name for name in calls.names if "adam" in name} == {"aten::_fused_adamw_.tensor_lr"}
        before = there["matrix"].detach().clone()
        other.begin(0.1)
        other.apply(torch.ones(()), divisors)
        other.num_steps -= 1
        assert torch.equal(there["matrix"], before)
    for name, parameter in here.items():
        torch.testing.assert_close(there[name], parameter)
        torch.testing.assert_close(other.first[name], one.first[name])


class Calls(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.name()))
        return func(*args, **(kwargs or {}))


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
