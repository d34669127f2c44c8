"""Which training of many is not worth its end: the median rule over learning curves.

Golovin et al., Google Vizier, KDD 2017, section 3.2.2: a trial stops when its best score so far is below the median of
what the trials before it had reached by then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from yt8m_assets.errors import PermanentError

Curve = tuple[tuple[float, float], ...]
"""(share of the training that is done, score) at each evaluation, in order."""
ENOUGH = 4
"""Curves that a median is taken of, at least."""
EARLIEST = 0.3
"""Share of the training before which none is ended: a warm-up is slow with the best of settings."""


class TrialPrunedError(PermanentError):
    """A training was ended because others were better by then; `curve` says how far it came."""

    tracked_status = "KILLED"

    def __init__(self, step: int, curve: Curve, score: float, middle: float) -> None:
        super().__init__(
            f"ended after step {step}: best {score:.4f}, half of the trials before had {middle:.4f} by then"
        )
        self.step, self.curve = step, curve


def curve_of(evaluations: Sequence[Mapping[str, float]], num_steps: int, headline: str = "map") -> Curve:
    """The curve of a training of `num_steps` steps."""
    return tuple((float(entry["step"]) / num_steps, float(entry[headline])) for entry in evaluations)


def best_by(curve: Curve, share: float) -> float | None:
    """The best score of a curve up to a share of the training; None before its first."""
    return max((score for at, score in curve if at <= share + 1e-9), default=None)


@dataclass(frozen=True, kw_only=True)
class MedianRule:
    """The judge of one trial."""

    curves: tuple[Curve, ...]
    """Those of the trials before it, pruned ones among them."""
    num_steps: int
    """Steps of this trial."""

    def __call__(self, evaluations: Sequence[Mapping[str, float]]) -> None:
        """Raise TrialPrunedError where the best score so far is too low, while an end saves steps."""
        curve = curve_of(evaluations, self.num_steps)
        if not curve or not EARLIEST <= curve[-1][0] < 1:
            return
        share, score = curve[-1][0], max(value for _, value in curve)
        reached = [best for other in self.curves if (best := best_by(other, share)) is not None]
        if len(reached) >= ENOUGH and score < median(reached):
            raise TrialPrunedError(int(evaluations[-1]["step"]), curve, score, median(reached))
