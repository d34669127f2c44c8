"""Averages of the weights over training, exponential (EMA) or over evaluated points (SWA), and their batch norm.

torch.optim.swa_utils.update_bn measures statistics for torch's own layers. Ours follow TensorFlow's conventions, some
over counted frames, so they are fed what training feeds them: its micro-batches, its draws of frames, its dropout.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.layers import BatchNorm
from yt8m_assets.data.dataset.batches import BatchStream
from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest
from yt8m_assets.training.randomness import derive_seed, seed_defaults
from yt8m_assets.training.step import Stepper

NUM_BATCHES = 100
"""Batches that statistics are measured on; a shorter training takes as many as it had steps."""


class WeightAverage:
    """A running average of a model's weights, on the model's device.

    Exponential with a decay (Polyak averaging; the decay ramps up as (1 + n) / (10 + n), so that short runs forget
    their start), or the plain mean where decay is None (SWA, https://arxiv.org/abs/1803.05407). Batch-norm statistics
    are not averaged: what each point's layers saw is not what the averaged weights see. They are measured anew
    (`measure_statistics`) and kept in `statistics`.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.count = 0
        self.source = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.average = {name: value.clone() for name, value in self.source.items()}
        self.statistics: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        if self.decay is None:
            weight = 1 / (self.count + 1)
        else:
            weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.average.values()), list(self.source.values()), weight)
        self.count += 1
        self.statistics = None

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Restore an average. Raises CheckpointMismatchError naming a missing tensor."""
        for name, value in self.average.items():
            if name not in tensors:
                raise CheckpointMismatchError(f"weight average: {name} is missing from the checkpoint")
            value.copy_(tensors[name])
        self.count = count


@torch.no_grad()
def measure_statistics(stepper: Stepper, source: BatchStream, first_step: int, stop: StopRequest) -> dict[str, Tensor]:
    """Set the running statistics of the stepper's model to their means over batches to come; its buffers, copied.

    The batches are this rank's next ones; they stay the next ones. The same state of a run gives the same statistics.
    Does nothing to a model without batch norm. Raises EvaluationInterrupted when training is asked to stop.
    """
    model: nn.Module = stepper.model
    norms: list[Any] = [m for m in model.modules() if isinstance(m, BatchNorm | nn.modules.batchnorm._BatchNorm)]
    if norms:
        position, training = source.state_dict(), model.training
        model.train()
        try:
            with as_means(norms) as count, contextlib.closing(iter(source)) as batches:  # type: ignore[type-var]
                for number in range(first_step, first_step + min(NUM_BATCHES, stepper.config.num_steps)):
                    if stop.requested:
                        raise EvaluationInterrupted
                    batch = next(batches)
                    seed_defaults(stepper.device, derive_seed(stepper.seed, "dropout", number, stepper.rank))
                    for part in stepper.split(batch):
                        count()
                        stepper.forward(part, 1.0, run=stepper.objective)
        finally:
            model.train(training)
            source.load_state_dict(position)
    parameters = dict(model.named_parameters())
    return {name: value.clone() for name, value in model.state_dict().items() if name not in parameters}


@contextlib.contextmanager
def as_means(norms: Sequence[Any]) -> Iterator[Callable[[], None]]:
    """Let batch norms keep plain means over the passes inside the block, of this process alone.

    The block calls what it is given before each pass.
    """
    kept = [(norm.momentum, getattr(norm, "synchronized", None)) for norm in norms]
    passes = 0

    def count() -> None:
        nonlocal passes
        passes += 1
        for norm in norms:
            norm.momentum, norm.synchronized = 1 / passes, False

    try:
        yield count
    finally:
        for norm, (momentum, synchronized) in zip(norms, kept, strict=True):
            norm.momentum, norm.synchronized = momentum, synchronized
