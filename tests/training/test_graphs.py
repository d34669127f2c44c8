"""Steps that are replayed, with a stand-in for the CUDA graph that runs the recorded body again (see tests/gpu)."""

import typing
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from models import list_models
from tests.benchmarks.gpu_cases import Setup
from tests.training.support import BATCHES
from tests.training.test_other_devices import Calls
from tests.training.test_step import CPU, make_stepper
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.training.graphs import EAGER_STEPS, MAX_GRAPHS, StepGraphs, tensors_of
from yt8m_assets.training.randomness import seed_defaults


class Again:
    """Runs the body on inputs of its own."""

    def __init__(self, body: Any, batch: Batch, device: torch.device) -> None:
        copies: Any = {name: value.clone() for name, value in tensors_of(batch).items()}
        self.body, self.inputs, self.runs = body, replace(batch, **copies), 0

    def run(self, batch: Batch, seed: int) -> torch.Tensor:
        for name, value in tensors_of(batch).items():
            getattr(self.inputs, name).copy_(value)
        seed_defaults(CPU, seed)
        self.runs += 1
        return self.body(self.inputs)  # type: ignore[no-any-return, unused-ignore]


def test_replayed_steps_are_those_that_were_launched() -> None:
    """Dropout, learning rate, step and the state are of the step that is replayed, not of the recorded one."""
    plain, replayed = make_stepper(), make_stepper()
    graphs = replayed.graphs = StepGraphs(replayed.advance, CPU, record=Again)
    for step in range(EAGER_STEPS + 4):
        first = BATCHES[0]
        batch = replace(first, frames=first.frames.roll(step, 0), labels=first.labels.roll(2 * step, 0))
        rate = 0.01 * (1 + step)
        torch.rand(step)
        assert float(plain.run(batch, step, rate)) == float(replayed.run(batch, step, rate))
    assert [graph.runs for graph in graphs.graphs.values()] == [4]  # type: ignore[attr-defined]
    for name, value in plain.model.state_dict().items():
        assert torch.equal(replayed.model.state_dict()[name], value)
    for name, value in plain.optimizer.state_tensors().items():
        assert torch.equal(replayed.optimizer.state_tensors()[name], value)


def test_each_shape_is_recorded_when_it_has_come_back_up_to_a_limit() -> None:
    graphs = StepGraphs(lambda batch: batch.frames.sum(), CPU, record=Again)
    batch = BATCHES[0]
    for length in range(1, MAX_GRAPHS + 2):
        part = replace(batch, frames=torch.ones(8, length, 3, dtype=torch.uint8))
        for number in range(EAGER_STEPS + 2):
            assert int(graphs.run(part, 0)) == 24 * length
            assert len(graphs.graphs) == min(length - (number < EAGER_STEPS), MAX_GRAPHS)
    unweighted = replace(batch, label_weights=None)
    assert len({len(graphs.seen) for _ in range(2) if graphs.run(unweighted, 0) is not None}) == 1


def test_every_tensor_of_a_batch_is_copied_in() -> None:
    """What were left out would stay what it was when the step was recorded."""
    batch = replace(BATCHES[0], frame_index=torch.zeros(8, 2, dtype=torch.int64))
    names = {name for name, hint in typing.get_type_hints(Batch, {"torch": torch}).items() if "Tensor" in str(hint)}
    assert names == set(tensors_of(batch)) == {field.name for field in fields(Batch)} - {"video_ids"}


def test_where_recording_fails_steps_go_on_without(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain, stepper = make_stepper(), make_stepper()
    stepper.graphs = StepGraphs(stepper.advance, CPU, record=refuse)
    for step in range(EAGER_STEPS + 3):
        assert float(plain.run(BATCHES[0], step, 0.1)) == float(stepper.run(BATCHES[0], step, 0.1))
    assert caplog.messages == [
        "recording a CUDA graph failed, training goes on without: operation not permitted when stream is capturing"
    ]


def test_a_failed_step_is_not_counted() -> None:
    """Replayed or not: the next one has its corrections."""
    stepper = make_stepper()

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    stepper.graphs = StepGraphs(fail, CPU)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no"):
        stepper.run(BATCHES[0], 0, 0.1)
    assert stepper.optimizer.num_steps == 0


@pytest.mark.parametrize("key", list_models())
def test_a_step_asks_the_device_for_nothing(key: str) -> None:
    """What it did would have to wait, and could not be recorded."""
    setup = Setup(device=CPU, tiny=True)
    stepper, batch = setup.stepper(key), setup.batch(key)
    with Calls() as calls:
        stepper.accumulate(batch)
    assert len(calls.names) > 50
    asking = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "aten::index.Tensor_bool")
    assert [name for name in calls.names if any(word in name for word in asking)] == []
