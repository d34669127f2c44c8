"""Batch-norm statistics of weights that no training step has used: those of averages.

torch.optim.swa_utils.update_bn does this for torch's own layers. Ours follow TensorFlow's conventions, some over
counted frames, so they are fed what training feeds them: its micro-batches, its draws of frames, its dropout.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.layers import BatchNorm
from yt8m_assets.training.interruption import EvaluationInterrupted
from yt8m_assets.training.randomness import derive_seed, seed_defaults

if TYPE_CHECKING:
    from yt8m_assets.training.loop import TrainingLoop

NUM_BATCHES = 100
"""Batches that statistics are measured on; a shorter training takes as many as it had steps."""


@torch.no_grad()
def measure_statistics(loop: "TrainingLoop") -> dict[str, Tensor]:
    """Set the running statistics of the loop's model to their means over batches to come; its buffers, copied.

    The batches are this rank's next ones; they stay the next ones. The same state of a run gives the same statistics.
    Does nothing to a model without batch norm. Raises EvaluationInterrupted when training is asked to stop.
    """
    model, stepper, step = loop.model, loop.stepper, loop.state.step
    norms: list[Any] = [m for m in model.modules() if isinstance(m, BatchNorm | nn.modules.batchnorm._BatchNorm)]
    if norms:
        position, training = loop.source.state_dict(), model.training
        model.train()
        try:
            with as_means(norms) as count, contextlib.closing(iter(loop.source)) as batches:  # type: ignore[type-var]
                for number in range(step, step + min(NUM_BATCHES, loop.config.num_steps)):
                    if loop.stop.requested:
                        raise EvaluationInterrupted
                    batch = next(batches)
                    seed_defaults(loop.device, derive_seed(stepper.seed, "dropout", number, stepper.rank))
                    for part, index in stepper.split(batch, stepper.draw_frames(batch.num_frames, number)):
                        count()
                        stepper.forward(part, index, 1.0, 0.0, run=stepper.objective)
        finally:
            model.train(training)
            loop.source.load_state_dict(position)
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
