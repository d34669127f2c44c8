"""What a weight search is worth on videos it has not seen: cross-validation over the hold-out's videos.

The weights that a search ends with were chosen on the very ratings that score them. Here every fold's videos are scored
with weights that were searched on the other folds, by the same presets and random points and a coordinate search (the
Gaussian process is left out: a fold has to be cheap).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yt8m_assets.ensemble.objective import FusionObjective, Part
from yt8m_assets.ensemble.proposal import Candidate, coordinate_search

_BUDGET = 60


@dataclass(frozen=True, kw_only=True)
class NestedResult:
    """Means over the folds; MAP within a fold is that of its videos alone."""

    searched_map: float
    """MAP of weights searched on the other folds."""
    equal_map: float
    """MAP of equal weights on the same videos."""
    gain: float
    """searched_map - equal_map: what searching is worth on unseen videos."""
    gain_standard_error: float
    """Standard error of the gain over the folds."""
    fold_gains: tuple[float, ...]
    """Gain of every fold."""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        return {**asdict(self), "fold_gains": list(self.fold_gains)}


def cross_validate(
    objective: FusionObjective, first: Sequence[Candidate], num_folds: int, w0_bounds: tuple[float, float], seed: int
) -> NestedResult | None:
    """Search on all folds but one, score on that one, for every fold; the first candidate is the equal weights.

    Folds whose videos (or the rest) hold no positive are left out; None when fewer than two remain.
    """
    videos = np.random.default_rng(seed).permutation(objective.videos())
    folds = [np.sort(videos[number::num_folds]) for number in range(num_folds)]
    searched, equal = [], []
    for fold in folds:
        inside, outside = objective.part(fold), objective.part(np.setdiff1d(videos, fold))
        if not inside.num_positives.any() or not outside.num_positives.any():
            continue
        best = _search(objective, first, outside, w0_bounds)
        searched.append(_value(objective, best, inside))
        equal.append(_value(objective, first[0], inside))
    if len(searched) < 2:
        return None
    gains = np.subtract(searched, equal)
    return NestedResult(
        searched_map=float(np.mean(searched)),
        equal_map=float(np.mean(equal)),
        gain=float(gains.mean()),
        gain_standard_error=float(gains.std(ddof=1) / np.sqrt(gains.size)),
        fold_gains=tuple(gains.tolist()),
    )


def _value(objective: FusionObjective, point: Candidate, part: Part) -> float:
    return objective(point.w0, dict(zip(objective.keys, point.weights, strict=True)), part)


def _search(
    objective: FusionObjective, first: Sequence[Candidate], part: Part, w0_bounds: tuple[float, float]
) -> Candidate:
    values = [_value(objective, point, part) for point in first]
    best = int(np.argmax(values))
    start, value = first[best], values[best]
    return coordinate_search(lambda p: _value(objective, p, part), start, value, w0_bounds, _BUDGET)[0]
