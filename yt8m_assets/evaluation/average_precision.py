"""Average precision: of one list, of a matrix of scores, and of rated segments by class (SPEC section 9)."""

from dataclasses import dataclass, field

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.ranking.sorting import descending_order


@dataclass(frozen=True, kw_only=True)
class MapResult:
    """A mean average precision and what it is the mean of."""

    map: float
    """Mean of `per_class`; NaN when no class could be scored."""
    per_class: dict[int, float]
    """Average precision of every class that has a positive and a ranking."""
    num_positives: dict[int, int] = field(default_factory=dict)
    """Positives of every class in `per_class`."""
    without_positives: tuple[int, ...] = ()
    """Ranked classes left out of the mean: none of their segments is rated positive."""
    missing: tuple[int, ...] = ()
    """Classes with positives that the ranking does not hold at all: not counted, as in the original."""


def average_precision(
    scores: np.ndarray, labels: np.ndarray, top_n: int | None = None, num_positives: float | None = None
) -> float:
    """Average precision of one list: scores [n] and labels [n] (positive above 0); 0.0 without positives.

    `top_n` looks at the best n alone and caps the positives at n; `num_positives` counts positives that the list does
    not hold. Ties keep their order in the input. Source: SPEC section 9.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise DataError(f"average precision: scores of shape {scores.shape} for labels of shape {labels.shape}")
    total = float(np.count_nonzero(labels > 0)) if num_positives is None else float(num_positives)
    if top_n is not None:
        total = min(total, top_n)
    if total <= 0 or not scores.size:
        return 0.0
    order = descending_order(scores)[:top_n]
    hit_ranks = np.flatnonzero(labels[order] > 0) + 1
    return float(np.sum(np.arange(1, hit_ranks.size + 1) / hit_ranks) / total)


def mean_average_precision(
    scores: np.ndarray, labels: np.ndarray, top_n: int | None = None, num_positives: np.ndarray | None = None
) -> MapResult:
    """Per-class average precision of dense scores [n, C] and labels [n, C] (positive above 0), classes 0..C-1.

    `top_n` as in `average_precision`; `num_positives` [C] replaces the counts. Classes without positives are left out
    of the mean and named in the result. Ties keep their order in the input. Source: SPEC section 9.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 2:
        raise DataError(f"mean average precision: scores of shape {scores.shape} for labels of shape {labels.shape}")
    totals = np.count_nonzero(labels > 0, axis=0) if num_positives is None else np.asarray(num_positives)
    per_class = {
        column: average_precision(scores[:, column], labels[:, column], top_n, float(totals[column]))
        for column in np.flatnonzero(totals > 0).tolist()
    }
    return MapResult(
        map=float(np.mean(list(per_class.values()))) if per_class else float("nan"),
        per_class=per_class,
        num_positives={column: int(totals[column]) for column in per_class},
        without_positives=tuple(np.flatnonzero(totals <= 0).tolist()),
    )


def grouped_average_precision(group: np.ndarray, positive: np.ndarray, num_positives: np.ndarray) -> np.ndarray:
    """Average precision of many lists at once, float64 [G].

    Arguments: `group` int [n] ascending, the list of each item, items best first within a list; `positive` bool [n];
    `num_positives` int [G], a list's positives whether or not it holds them. 0 for a list without positives.
    """
    hits = np.cumsum(positive)
    begins = np.searchsorted(group, np.arange(num_positives.size))
    before = np.concatenate([[0], hits])[begins]
    at = np.flatnonzero(positive)
    owner = group[at]
    precision = (hits[at] - before[owner]) / (at - begins[owner] + 1)
    sums = np.bincount(owner, weights=precision, minlength=num_positives.size)
    return sums / np.maximum(num_positives, 1)
