"""How much evaluation may cost beside training: how often it takes place, and when one is ended early.

How often is decided by counting segments, never by the clock, so that a run repeated or continued elsewhere evaluates
at the same steps; the clock only ends an evaluation that would otherwise hold training up (docs/decisions/0005).
"""

import time
from dataclasses import dataclass, field

from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import StopRequest

TRAINING_COST = 3
"""Forward passes that training on one example costs: one forward, and about two for the backward pass."""


class EvaluationEnded(Exception):
    """An evaluation was ended before all segments were scored; there is no MAP. The text says why."""


class EvaluationInterrupted(EvaluationEnded):
    """It was ended because training was asked to stop; the rerun makes it again."""


@dataclass(frozen=True)
class EvaluationLimit:
    """What may end an evaluation between two batches."""

    stop: StopRequest
    """Asked to stop, training does not wait for the evaluation's end."""
    seconds: float | None = None
    """Longest time it may take; None: as long as it needs."""
    started: float = field(default_factory=time.monotonic)
    """When it began, on the monotonic clock."""

    def check(self) -> None:
        """Raise EvaluationEnded if the evaluation must not go on."""
        if self.stop.requested:
            raise EvaluationInterrupted("asked to stop")
        if self.seconds is not None and time.monotonic() - self.started > self.seconds:
            raise EvaluationEnded(f"not done within evaluation_seconds = {self.seconds:g}")


def evaluation_interval(config: TrainingConfig, num_segments: int) -> int:
    """Steps between two evaluations of `num_segments` segments.

    It is the least multiple of `evaluate_every` at which scoring takes at most `evaluation_share` of training's
    arithmetic, both counted in forward passes of one segment.
    """
    every = max(config.evaluate_every or config.num_steps, 1)
    if config.evaluation_share is None:
        return every
    affordable = config.evaluation_share * TRAINING_COST * config.batch_size * every
    return every * max(1, -int(-num_segments // affordable))


def is_due(step: int, interval: int, num_steps: int) -> bool:
    """Whether something that happens every `interval` steps happens after this one; it does after the last one."""
    return step == num_steps or step % interval == 0
