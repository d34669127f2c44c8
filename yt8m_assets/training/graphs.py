"""A training step as one launch: CUDA graphs, recorded for each shape of batch that comes back.

A step of these models is a thousand small kernels; a GPU is done with one before the host has launched the next. A
graph launches all of them at once. What it reads and writes lies in places in memory that never change.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.device.memory import is_out_of_memory
from yt8m_assets.training.randomness import default_generators

logger = logging.getLogger(__name__)

EAGER_STEPS = 3
"""Steps of a shape that run kernel by kernel first: libraries choose their algorithms and take their workspace."""
MAX_GRAPHS = 8
"""Shapes that are recorded, the first to come back so often; a graph keeps its inputs and gradients in memory."""


class Pool:
    """Memory that recorded steps share: they are replayed one after another, those of several models too."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()


_pools: WeakValueDictionary[torch.device, Pool] = WeakValueDictionary()  # a pool without a graph is gone for torch too


class Recorded:
    """One recorded step on a CUDA device: its batch, its loss and the graph.

    Raises whatever `body` does that cannot be recorded; the device and its random numbers go on as before.
    """

    def __init__(self, body: Callable[[Batch], Tensor], batch: Batch, device: torch.device) -> None:
        copies: Any = {name: _copied(value, device) for name, value in tensors_of(batch).items()}
        self.inputs = replace(batch, **copies)
        self.graph = torch.cuda.CUDAGraph()
        self.pool = _pools.get(device) or _pools.setdefault(device, Pool())
        # Other threads may page-lock memory and copy checkpoints meanwhile.
        recording = torch.cuda.graph(self.graph, pool=self.pool.handle, capture_error_mode="thread_local")
        here = torch.cuda.stream(torch.cuda.current_stream(device))  # a recording that fails stays on its own
        with own_generator(device) as self.generator, here, recording:
            self.loss = body(self.inputs)

    def run(self, batch: Batch, seed: int) -> Tensor:
        """Copy a batch in and replay, with the random numbers of `seed`."""
        for name, value in tensors_of(batch).items():
            getattr(self.inputs, name).copy_(value, non_blocking=True)
        self.generator.manual_seed(seed)
        self.graph.replay()
        return self.loss.clone()  # the next replay writes over it


@contextmanager
def own_generator(device: torch.device) -> Iterator[torch.Generator]:
    """Let a generator of its own stand for the device's default one: a graph is bound to the one it is recorded with,
    and a recording that fails leaves it unusable.
    """
    default = default_generators(device)[-1]
    before, own = default.graphsafe_get_state(), default.clone_state()
    default.graphsafe_set_state(own)
    try:
        yield own
    finally:
        default.graphsafe_set_state(before)


class StepGraphs:
    """Runs a step's body, as it is or recorded; it does nothing on the host that the next step needs done anew.

    `record` makes a `Recorded`. Where recording fails, all goes on unrecorded, and the log says why. The body is not
    kept: it is its owner's method, and two that keep each other stay on the device after a training has ended.
    """

    def __init__(self, device: torch.device, record: Any = Recorded) -> None:
        self.device, self.record = device, record
        self.seen: Counter[Any] = Counter()
        self.graphs: dict[Any, Recorded] = {}
        self.enabled, self.recording = True, False

    def run(self, body: Callable[[Batch], Tensor], batch: Batch, seed: int) -> Tensor:
        """The loss that `body`, always the same, has of a batch that may still lie in the host's memory.

        torch's generators are at `seed`.
        """
        shape = tuple((name, value.shape, value.dtype) for name, value in tensors_of(batch).items())
        if shape not in self.graphs and self.enabled and len(self.graphs) < MAX_GRAPHS:
            self.seen[shape] += 1
            if self.seen[shape] > EAGER_STEPS:
                self._record(shape, body, batch)
        graph = self.graphs.get(shape)
        return body(batch) if graph is None else graph.run(batch, seed)

    def give_up(self, error: Exception) -> bool:
        """Forget all graphs, where memory ran out beside them; whether there were any and a step can be made anew."""
        if not self.graphs or not is_out_of_memory(error):
            return False
        logger.warning("out of memory beside recorded CUDA graphs, training goes on without")
        self.graphs.clear()
        self.enabled = False
        return True

    def _record(self, shape: Any, body: Callable[[Batch], Tensor], batch: Batch) -> None:
        self.recording = True
        try:
            self.graphs[shape] = self.record(body, batch, self.device)
        except Exception as error:  # noqa: BLE001 - whatever it is, steps run without
            lines = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("recording a CUDA graph failed, training goes on without: %s", lines[0])
            self.enabled = False
            _pools.pop(self.device, None)  # it stays marked as being recorded to
        finally:
            self.recording = False


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """All that a step may read of a batch, by name."""
    values = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    return {name: value for name, value in values if isinstance(value, Tensor)}


def _copied(value: Tensor, device: torch.device) -> Tensor:
    """A tensor of its own on the device, in the order of its dimensions."""
    return torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)
