"""Steps that are replayed, with a stand-in for the CUDA graph that runs the recorded body again (see tests/gpu)."""

import gc
import itertools
import typing
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import list_models
from tests.benchmarks.gpu_cases import Setup
from tests.training.batches import BATCHES
from tests.training.test_other_devices import Calls
from tests.training.test_step import CONFIG, CPU, make_stepper
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.errors import OutOfMemoryError
from yt8m_assets.training import graphs as graphs_module
from yt8m_assets.training.graphs import EAGER_STEPS, MAX_GRAPHS, Recorded, StepGraphs, tensors_of
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
    graphs = replayed.graphs = StepGraphs(CPU, record=Again)
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


def counted(batch: Batch) -> torch.Tensor:
    return batch.frames.sum()


def test_each_shape_is_recorded_when_it_has_come_back_up_to_a_limit() -> None:
    graphs = StepGraphs(CPU, record=Again)
    batch = BATCHES[0]
    for length in range(1, MAX_GRAPHS + 2):
        part = replace(batch, frames=torch.ones(8, length, 3, dtype=torch.uint8))
        for number in range(EAGER_STEPS + 2):
            assert int(graphs.run(counted, part, 0)) == 24 * length
            assert len(graphs.graphs) == min(length - (number < EAGER_STEPS), MAX_GRAPHS)
    unweighted = replace(batch, frames=torch.ones(8, 1, 3, dtype=torch.uint8), label_weights=None)
    assert int(graphs.run(counted, unweighted, 0)) == 24
    shapes = [{name for name, *_ in shape} for shape in graphs.graphs]
    assert all("label_weights" in names for names in shapes), "a batch without weights is of another shape"


def test_every_tensor_of_a_batch_is_copied_in() -> None:
    """What were left out would stay what it was when the step was recorded."""
    batch = replace(BATCHES[0], frame_index=torch.zeros(8, 2, dtype=torch.int64))
    names = {name for name, hint in typing.get_type_hints(Batch, {"torch": torch}).items() if "Tensor" in str(hint)}
    assert names == set(tensors_of(batch)) == {field.name for field in fields(Batch)} - {"video_ids"}


def test_where_recording_fails_steps_go_on_without(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain, stepper = make_stepper(), make_stepper()
    stepper.graphs = StepGraphs(CPU, record=refuse)
    for step in range(EAGER_STEPS + 3):
        assert float(plain.run(BATCHES[0], step, 0.1)) == float(stepper.run(BATCHES[0], step, 0.1))
    assert caplog.messages == [
        "recording a CUDA graph failed, training goes on without: operation not permitted when stream is capturing"
    ]


def test_a_failed_step_is_not_counted() -> None:
    """Replayed or not: the next one has its corrections."""
    stepper = make_stepper()

    def fail(*_: Any) -> Any:
        raise RuntimeError("no")

    stepper.graphs = StepGraphs(CPU)
    stepper.advance = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no"):
        stepper.run(BATCHES[0], 0, 0.1)
    assert stepper.optimizer.num_steps == 0


def test_what_recording_refuses_is_not_the_compilers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on unrecorded and compiled, not without both."""
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    stepper = make_stepper(replace(CONFIG, compile=True))
    graphs = stepper.graphs = StepGraphs(CPU, record=lambda body, batch, device: body(batch))
    forward = stepper.objective.forward

    def refusing(*tensors: Any) -> Any:
        if graphs.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return forward(*tensors)

    monkeypatch.setattr(stepper.objective, "forward", refusing)
    for step in range(EAGER_STEPS + 2):
        stepper.run(BATCHES[0], step, 0.1)
    assert (graphs.enabled, graphs.graphs, graphs.recording) == (False, {}, False)
    assert stepper.compiled.enabled


def test_out_of_memory_beside_recorded_steps_costs_the_recording_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph keeps what a step takes; a longer batch, launched as it is, would have room without. Then no more."""
    plain, stepper = make_stepper(), make_stepper()
    graphs = stepper.graphs = StepGraphs(CPU, record=Again)
    longer = replace(BATCHES[0], frames=BATCHES[0].frames.repeat(1, 2, 1), valid=BATCHES[0].valid.repeat(1, 2))
    accumulate = stepper.accumulate

    def scarce(batch: Batch) -> torch.Tensor:
        loss = accumulate(batch)
        if graphs.graphs and batch.frames.shape == longer.frames.shape:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(stepper, "accumulate", scarce)
    for step, batch in enumerate([*[BATCHES[0]] * (EAGER_STEPS + 2), longer, BATCHES[0]]):
        assert bool(graphs.graphs) is (EAGER_STEPS < step <= EAGER_STEPS + 2)
        assert float(plain.run(batch, step, 0.1)) == float(stepper.run(batch, step, 0.1))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(stepper.model.state_dict()[name], value)
    assert plain.optimizer.num_steps == stepper.optimizer.num_steps
    assert caplog.messages == ["out of memory beside recorded CUDA graphs, training goes on without"]

    def exhausted(batch: Batch) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stepper, "accumulate", exhausted)
    with pytest.raises(OutOfMemoryError, match="lower batch_size"):
        stepper.run(longer, 9, 0.1)


def test_a_training_that_has_ended_leaves_the_device_at_once() -> None:
    """Not when Python next looks for what keeps itself: the next models need the room."""

    class Kept:
        def __init__(self, body: Any, batch: Batch, device: torch.device) -> None:
            self.loss = body(batch)

        def run(self, batch: Batch, seed: int) -> torch.Tensor:
            return self.loss  # type: ignore[no-any-return]

    stepper = make_stepper()
    stepper.graphs = StepGraphs(CPU, record=Kept)
    for step in range(EAGER_STEPS + 2):
        stepper.run(BATCHES[0], step, 0.1)
    model = weakref.ref(stepper.model)
    gc.disable()
    try:
        del stepper
        assert model() is None
    finally:
        gc.enable()


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


class Generator:
    """A default generator whose state another can stand for."""

    def __init__(self) -> None:
        self.state: list[int] = [7]

    def graphsafe_get_state(self) -> list[int]:
        return self.state

    def graphsafe_set_state(self, other: Any) -> None:
        self.state = getattr(other, "state", other)

    def clone_state(self) -> "Generator":
        own = Generator()
        own.state = list(self.state)
        return own

    def manual_seed(self, seed: int) -> None:
        self.state[0] = seed


class Cuda:
    """Of torch.cuda what recording asks for; a replay computes `again`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.generator, self.pools, self.modes = Generator(), itertools.count(), list[dict[str, Any]]()
        monkeypatch.setattr(graphs_module, "_pools", type(graphs_module._pools)())
        monkeypatch.setattr(graphs_module, "default_generators", lambda device: [None, self.generator])
        parts = {"CUDAGraph": SimpleNamespace, "graph_pool_handle": lambda: next(self.pools), "graph": self.graph}
        parts |= {"stream": lambda _: nullcontext(), "current_stream": lambda _: None}
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)

    @contextmanager
    def graph(self, graph: Any, **mode: Any) -> Iterator[None]:
        self.modes.append(mode)
        yield


def total(batch: Batch) -> torch.Tensor:
    return batch.frames.sum().float() + batch.labels.sum() * 1000


def test_what_a_recording_reads_are_copies_of_the_batch_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very class, on a stand-in for torch.cuda; on a GPU tests/gpu tries it."""
    cuda = Cuda(monkeypatch)
    first, other = BATCHES[0], replace(BATCHES[0], labels=1 - BATCHES[0].labels, frames=BATCHES[0].frames // 2)
    recorded = Recorded(total, first, CPU)
    recorded.graph.replay = lambda: recorded.loss.copy_(total(recorded.inputs))
    losses = [recorded.run(batch, 40 + number) for number, batch in enumerate((first, other, first))]
    assert [float(loss) for loss in losses] == [float(total(batch)) for batch in (first, other, first)]
    assert all(
        value.data_ptr() != getattr(first, name).data_ptr() for name, value in tensors_of(recorded.inputs).items()
    )
    assert recorded.generator.state == [42]  # type: ignore[attr-defined]
    assert cuda.generator.state == [7], "the default generator is as it was"
    assert cuda.modes == [{"pool": 0, "capture_error_mode": "thread_local"}]


def test_recordings_share_a_pool_as_long_as_one_of_them_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch forgets a pool with its last graph, and refuses its name from then on."""
    cuda = Cuda(monkeypatch)
    one, two = Recorded(total, BATCHES[0], CPU), Recorded(total, BATCHES[0], CPU)
    del one
    three = Recorded(total, BATCHES[0], CPU)
    assert [mode["pool"] for mode in cuda.modes] == [0, 0, 0]
    del two, three
    gc.collect()
    four = Recorded(total, BATCHES[0], CPU)
    assert (cuda.modes[-1]["pool"], four.pool.handle) == (1, 1)


def test_a_recording_that_fails_gives_the_random_numbers_back_and_leaves_its_pool(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = Cuda(monkeypatch)
    alive = Recorded(total, BATCHES[0], CPU)

    def body(batch: Batch) -> torch.Tensor:
        if cuda.generator.state == [7]:  # it is not being recorded
            return total(batch)
        raise RuntimeError("operation not permitted")

    cuda.generator.clone_state = lambda: SimpleNamespace(state=[8])  # type: ignore[method-assign,assignment,return-value]
    graphs = StepGraphs(CPU)
    for _ in range(EAGER_STEPS + 2):
        assert float(graphs.run(body, BATCHES[0], 0)) == float(total(BATCHES[0]))
    assert "operation not permitted" in caplog.text
    assert cuda.generator.state == [7]
    Recorded(total, BATCHES[0], CPU)
    assert cuda.modes[-1]["pool"] == 1
    assert alive.pool.handle == 0
