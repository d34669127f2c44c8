"""How far to trust searched weights: cross-validation over the hold-out's videos chooses a way back to equal ones.

The weights that a search ends with were chosen on the very ratings that score them, and can lose to equal weights on
other videos. So they are shrunk: `amount` 0 leaves them as they are, 1 makes them equal, between them weights are mixed
(and w0 on a logarithmic scale). Every fold's videos are scored with weights searched on the other folds, at every
amount, and so again for other divisions into folds. The amount of the highest mean is taken, unless that gains less
over equal weights than one standard error: where the folds cannot tell, equal weights are the safer choice. Where a
second stage is one of the rankings it is the safer choice in their place: it has few weights of its own to be wrong.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from yt8m_assets.ensemble.objective import FusionObjective, Part
from yt8m_assets.ensemble.proposal import Candidate, candidate, climb

AMOUNTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Amounts of shrinking that are compared."""
NUM_DIVISIONS = 3
"""Divisions of the videos into folds: one alone chooses by the luck of its draw."""
EQUAL = "equal weights"
"""What weights are shrunk to where nothing better is known."""
_BUDGET = 100
"""Evaluations of a fold's search: a climb from the best of the first points finds most of the gain."""


@dataclass(frozen=True, kw_only=True)
class NestedResult:
    """Means over the folds, in the order of `AMOUNTS`; MAP within a fold is that of its videos alone."""

    amount: float
    """The chosen amount: 0 = the search as it is, 1 = equal weights."""
    gain: float
    """What searching as it is gains over `towards`, on videos that it did not see."""
    gain_standard_error: float
    """Standard error of that over the folds."""
    searched_map: float
    """MAP of weights searched on the other folds."""
    equal_map: float
    """MAP of `towards` on the same videos."""
    amounts: tuple[float, ...] = AMOUNTS
    """The amounts compared."""
    gains: tuple[float, ...]
    """Gain of each amount over equal weights; the highest is a little flattered by being chosen."""
    standard_errors: tuple[float, ...]
    """Standard error of each."""
    fold_gains: tuple[float, ...]
    """Gain of the search as it is, fold by fold, division after division."""
    towards: str = EQUAL
    """What an amount of 1 stands for: the safer choice, in words."""

    @property
    def reason(self) -> str:
        """Why the amount was chosen, as a sentence."""
        best = int(np.argmax(self.gains))
        gain = f"{self.gains[best]:+.4f} +- {self.standard_errors[best]:.4f}"
        if self.amounts[best] == 1:
            return f"no amount of searching beats {self.towards} on unseen videos"
        if self.amount == 1:
            return f"on unseen videos the best amount, {self.amounts[best]:g}, gains {gain}: not more than noise"
        return f"on unseen videos {self.amounts[best]:g} gains most, {gain} over {self.towards}"

    def to_json(self) -> dict[str, Any]:
        """As plain numbers."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        if self.towards == EQUAL:
            del plain["towards"]
        return {**plain, "reason": self.reason}


def shrink(searched: Candidate, equal: Candidate, amount: float) -> Candidate:
    """The way from the searched point (0) to the safer one (1), by default that of equal weights."""
    if amount in (0.0, 1.0):
        return equal if amount else searched
    w0 = float(np.exp((1 - amount) * np.log(searched.w0) + amount * np.log(equal.w0)))
    pairs = zip(searched.weights, equal.weights, strict=True)
    return candidate(w0, [(1 - amount) * mine + amount * other for mine, other in pairs], "shrunk")


def cross_validate(
    objective: FusionObjective,
    first: Sequence[Candidate],
    num_folds: int,
    w0_bounds: tuple[float, float],
    seed: int,
    safe: Candidate | None = None,
    towards: str = EQUAL,
) -> NestedResult | None:
    """Search on all folds but one, score on that one, for every fold.

    `safe` is what weights are shrunk to, by default the first candidate, and `towards` its name.
    Folds whose videos (or the rest) hold no positive are left out; None when fewer than two remain.
    """
    rows, safe = [], safe or first[0]
    for division in range(NUM_DIVISIONS):
        videos = np.random.default_rng([seed, division]).permutation(objective.videos())
        for fold in (videos[number::num_folds] for number in range(num_folds)):
            inside, outside = objective.part(fold), objective.part(np.setdiff1d(videos, fold))
            if inside.num_positives.any() and outside.num_positives.any():
                best = _search(objective, first, outside, w0_bounds)
                rows.append([_value(objective, shrink(best, safe, amount), inside) for amount in AMOUNTS])
    return _choose(np.array(rows), num_folds, towards) if len(rows) > NUM_DIVISIONS else None


def _choose(maps: np.ndarray, num_folds: int, towards: str = EQUAL) -> NestedResult:
    """From the MAP of each fold at each amount, float64 [folds of all divisions, amounts]."""
    gains = maps - maps[:, -1:]
    means = gains.mean(axis=0)
    # The divisions are of the same videos: their folds say nothing more about how much videos differ.
    errors = gains.std(axis=0, ddof=1) / np.sqrt(num_folds)
    best = int(np.argmax(means))
    return NestedResult(
        amount=AMOUNTS[best] if means[best] > errors[best] else 1.0,
        gain=float(means[0]),
        gain_standard_error=float(errors[0]),
        searched_map=float(maps[:, 0].mean()),
        equal_map=float(maps[:, -1].mean()),
        gains=tuple(means.tolist()),
        standard_errors=tuple(errors.tolist()),
        fold_gains=tuple(gains[:, 0].tolist()),
        towards=towards,
    )


def _value(objective: FusionObjective, point: Candidate, part: Part) -> float:
    return objective(point.w0, dict(zip(objective.keys, point.weights, strict=True)), part)


def _search(
    objective: FusionObjective, first: Sequence[Candidate], part: Part, w0_bounds: tuple[float, float]
) -> Candidate:
    values = [_value(objective, point, part) for point in first]
    best = int(np.argmax(values))
    return climb(lambda p: _value(objective, p, part), first[best], values[best], w0_bounds, _BUDGET)[0]
