"""Several trainings over one reading of the data: each example is read, checked and decoded once, and handed to each.

A model that is trained beside others is bit for bit the one that is trained alone: a training shares nothing with the
one beside it but the bytes that it reads.
"""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from yt8m_assets.data.dataset.batches import BatchStream, JointBatch
from yt8m_assets.device.allocator import kept_pages
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.randomness import isolated_randomness
from yt8m_assets.training.trainer import Training

logger = logging.getLogger(__name__)
Outcome = tuple[str, Any]
"""Name of a training, and its result or the Exception that ended it."""


def run_pass(
    trainings: Mapping[str, Training[Any]], stop: StopRequest, device: torch.device, config: TrainingConfig
) -> Iterator[Outcome]:
    """Run trainings side by side, those that lag behind first; yields each one's outcome as soon as it has one.

    One that fails ends by itself and the others go on; what reading raises ends all that were to have the batch. When
    a stop is asked for, each saves and ends. config: any of theirs; of it torch's modes are taken, which they share.
    """
    pass_ = _Pass(trainings, stop, device)
    pages = kept_pages(device.type == "cpu")
    modes = deterministic_algorithms(config.deterministic), matmul_precision(config.float32_matmul_precision, device)
    with isolated_randomness(device, 0), modes[0], modes[1], pages:
        try:
            yield from pass_.run()
        finally:
            for training in trainings.values():
                training.close()


class _Pass:
    """Who wants which batch."""

    def __init__(self, trainings: Mapping[str, Training[Any]], stop: StopRequest, device: torch.device) -> None:
        self.trainings, self.stop, self.device = trainings, stop, device
        self.wanted: dict[str, BatchStream | None] = {}
        """What each training that has not ended wants next; None: to end."""

    @property
    def stops(self) -> bool:
        """Whether all are to be told of a stop. One alone looks for itself, together with its other processes."""
        return self.stop.requested and len(self.trainings) > 1

    def run(self) -> Iterator[Outcome]:
        """All outcomes."""
        for name in self.trainings:
            yield from self.go_on(name, None)
        while self.wanted:
            ended = [name for name, stream in self.wanted.items() if stream is None]
            waiting = [name for name in self.wanted if name not in ended]
            if waiting and self.stops:
                ended = waiting  # first: all begin to save before one waits for what it has written
            if not ended:
                yield from self.read()
            for name in ended:
                yield from self.go_on(name, (None, 0.0))

    def read(self) -> Iterator[Outcome]:
        """Read for those that lag behind most, as long as the same is to be read and none is about to end.

        Then nothing is read ahead any more: who compares weights may read the same files.
        """
        position = min(stream.position for stream in self.wanted.values() if stream)
        first, *others = self.at(position).values()
        joint = first.joined(others)
        with contextlib.closing(iter(joint)) as batches:  # type: ignore[type-var]
            while not self.stops and None not in self.wanted.values():
                group = self.at(joint.position)
                if {view for stream in group.values() for view in stream.views} != set(joint.views):
                    return
                started = time.perf_counter()
                try:
                    batch = next(batches)
                    if isinstance(batch, JointBatch):
                        batch = batch.to(self.device, non_blocking=True)
                except Exception as error:  # noqa: BLE001 - the fault of every training that was to have the batch
                    for name in group:
                        yield from self.throw(name, error)
                    return
                seconds = time.perf_counter() - started
                for name, stream in group.items():
                    if self.stops:
                        return  # and those that have not had the batch lag by one
                    stream.position = joint.position
                    try:
                        fed = part_of(batch, stream, joint), seconds
                    except Exception as error:  # noqa: BLE001 - memory that ran out, for one
                        yield from self.throw(name, error)
                    else:
                        yield from self.go_on(name, fed)

    def at(self, position: int) -> dict[str, BatchStream]:
        """Who wants the batch at a position."""
        return {name: stream for name, stream in self.wanted.items() if stream and stream.position == position}

    def go_on(self, name: str, fed: Any) -> Iterator[Outcome]:
        """Let a training go on until it wants something; its outcome, if it ends."""
        yield from self._step(name, lambda: self.trainings[name].send(fed))

    def throw(self, name: str, error: Exception) -> Iterator[Outcome]:
        """Let a training end by an error from outside."""
        yield from self._step(name, lambda: self.trainings[name].throw(error))

    def _step(self, name: str, step: Any) -> Iterator[Outcome]:
        self.wanted.pop(name, None)
        try:
            self.wanted[name] = step()
        except StopIteration as end:
            yield name, end.value
        except Exception as error:  # noqa: BLE001 - handed to the caller; the others go on
            if len(self.trainings) > 1:
                logger.warning("%s ends: %s: %s", name, type(error).__name__, error)
                forget_frames(error)
            yield name, error


def forget_frames(error: BaseException) -> None:
    """Let go of what the code that raised an error, and what it was raised from, had in hand: a model's weights."""
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


def part_of(batch: Any, stream: BatchStream, joint: BatchStream) -> Any:
    """A stream's own batch of what was read for several."""
    return batch.parts[joint.views.index(stream.views[0])].take(batch.batch) if isinstance(batch, JointBatch) else batch


@contextmanager
def matmul_precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute float32 matrix products so inside the block. On a CPU nothing changes."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside the block, if enabled."""
    if not enabled:  # even asking torch for the default imports its compiler, which takes seconds
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products would be refused
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
