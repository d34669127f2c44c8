"""A second stage: how likely a segment shows a class, from where the models rank it, its neighbours and its video.

A logistic regression on four figures of a (segment, class), shared by all classes. x is the log-odds of a segment's
place in a list, (n - place - 1/2) of n, averaged over the models; the figures are x, its mean over the video, its
maximum over the video, and its mean over the two neighbours. Ratings say which way the video counts: a segment may have
to stand out from its own (the weight of the mean is negative; docs/beyond.md has figures), or be the likelier for it.

It is fitted on out-of-fold rankings alone, and never scores a video that it was fitted on: `StagedRanking` refuses.
Shapes: S segments, V videos, P rated pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.ranking.files import TOP_K, RankingSource
from yt8m_assets.ranking.fusion import unified_segments, union_of_classes
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.sorting import descending_order

SECOND_STAGE = "second_stage"
"""Key of its ranking among those of the models."""
FEATURES = ("place", "video_mean", "video_max", "neighbours")
NUM_FOLDS = 5
_RIDGE = 0.01
_ITERATIONS = 30


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """What was fitted, and on which videos."""

    weights: tuple[float, ...]
    """Of the four figures, and the constant: log-odds of a positive rating."""
    fitted_on: frozenset[str]
    """Ids of the videos whose ratings it was fitted on."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        named = dict(zip((*FEATURES, "constant"), self.weights, strict=True))
        return {"weights": named, "fitted_on": sorted(self.fitted_on)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SecondStage":
        """What `to_json` gave."""
        weights = tuple(float(values["weights"][name]) for name in (*FEATURES, "constant"))
        return cls(weights=weights, fitted_on=frozenset(values["fitted_on"]))


class _Figures:
    """The four figures of one class after another."""

    def __init__(self, rankings: Sequence[RankingSource]) -> None:
        self.class_ids, self._rankings = union_of_classes(rankings), list(rankings)
        self.segments, self._rows = unified_segments(rankings)
        video, size = self.segments.video, len(self.segments)
        self._first = np.flatnonzero(np.diff(video, prepend=-1))
        place = np.arange(size)
        self._before = np.where(np.isin(place, self._first), place, place - 1)
        self._after = np.where(np.isin(place + 1, np.append(self._first, size)), place, place + 1)

    def of(self, class_id: int) -> np.ndarray:
        """float64 [S, 4]."""
        size, video = len(self.segments), self.segments.video
        x = np.zeros(size)
        for ranking, rows in zip(self._rankings, self._rows, strict=True):
            listed = ranking.entries(class_id)[0]
            place = np.full(size, size - 1)  # what a list lacks stands last
            place[listed if rows is None else rows[listed]] = np.arange(len(listed))
            x += np.log(size - place - 0.5) - np.log(place + 0.5)
        x /= len(self._rankings)
        mean = np.add.reduceat(x, self._first) / np.diff(self._first, append=size)
        most = np.maximum.reduceat(x, self._first)
        return np.stack([x, mean[video], most[video], (x[self._before] + x[self._after]) / 2], axis=1)


def fit_second_stage(
    rankings: Sequence[RankingSource], ratings: Ratings, without: frozenset[str] = frozenset()
) -> SecondStage:
    """Fit on the ratings of the videos that the rankings hold, all but those named in `without`.

    Raises DataError where these are not of both kinds.
    """
    return _fit(*_rated_figures(_Figures(rankings), ratings), without)


def _rated_figures(figures: _Figures, ratings: Ratings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs that are ranked: figures [P, 4], whether positive [P], video ids [P]."""
    rows = ratings.rows_in(figures.segments)
    found = np.zeros((len(ratings), len(FEATURES)))
    for class_id in np.intersect1d(ratings.class_id, figures.class_ids).tolist():
        mine = (ratings.class_id == class_id) & (rows >= 0)
        found[mine] = figures.of(class_id)[rows[mine]]
    kept = (rows >= 0) & np.isin(ratings.class_id, figures.class_ids)
    return found[kept], ratings.score[kept] > 0, ratings.video_ids[ratings.video[kept]]


def _fit(values: np.ndarray, positive: np.ndarray, video_ids: np.ndarray, without: frozenset[str]) -> SecondStage:
    kept = ~np.isin(video_ids, list(without))
    values, truth = values[kept], positive[kept].astype(np.float64)
    if not 0 < truth.sum() < truth.size:
        raise DataError(f"second stage: {truth.size} ratings to fit on, {int(truth.sum())} positive: both are needed")
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    inputs = np.column_stack([(values - mean) / spread, np.ones(len(values))])
    ridge = _RIDGE * np.append(np.ones(len(FEATURES)), 0.0)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_ITERATIONS):  # Newton
        chance = 1.0 / (1.0 + np.exp(-inputs @ weights))
        slope = inputs.T @ (chance - truth) / len(truth) + ridge * weights
        curve = (inputs * (chance * (1.0 - chance))[:, None]).T @ inputs / len(truth) + np.diag(ridge)
        weights -= np.linalg.solve(curve + 1e-9 * np.eye(len(curve)), slope)
    raw = weights[:-1] / spread
    constant = weights[-1] - raw @ mean
    return SecondStage(weights=(*raw.tolist(), float(constant)), fitted_on=frozenset(video_ids[kept].tolist()))


class StagedRanking:
    """What second stages make of rankings, class by class as it is asked for (a `RankingSource`).

    Each video is scored by the stage of its number in `stage_of` int [V] (the first where left out). Raises DataError
    naming the videos where a stage would score one that it was fitted on.
    """

    def __init__(
        self,
        rankings: Sequence[RankingSource],
        stages: Sequence[SecondStage],
        stage_of: np.ndarray | None = None,
        k: int = TOP_K,
    ) -> None:
        self._figures, self.k = _Figures(rankings), k
        self.class_ids, self.segments = self._figures.class_ids, self._figures.segments
        names = self.segments.video_ids
        stage_of = np.zeros(len(names), np.int64) if stage_of is None else stage_of
        pairs = zip(names.tolist(), stage_of.tolist(), strict=True)
        leaks = [name for name, number in pairs if name in stages[number].fitted_on]
        if leaks:
            raise DataError(
                f"second stage: {len(leaks)} videos would be scored by what was fitted on their own ratings: "
                f"{', '.join(leaks[:5])}"
            )
        weights = np.array([stage.weights for stage in stages])
        self._weights = weights[stage_of[self.segments.video]]  # [S, 5]

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and log-odds float32 [n] of a class, best first."""
        score = (self._figures.of(class_id) * self._weights[:, :-1]).sum(axis=1) + self._weights[:, -1]
        order = descending_order(score)[: self.k]
        return order.astype(np.int32), score[order].astype(np.float32)


def fold_of(segments: Segments, seed: int) -> np.ndarray:
    """int64 [V]: the fold of each video."""
    order = np.random.default_rng([seed, 11]).permutation(len(segments.video_ids))
    folds = np.empty(len(order), np.int64)
    folds[order] = np.arange(len(order)) % NUM_FOLDS
    return folds


def cross_fitted(
    rankings: Sequence[RankingSource], ratings: Ratings, seed: int, k: int = TOP_K
) -> tuple[StagedRanking, list[SecondStage]]:
    """The ranking in which every video is scored by what was fitted on the other folds' videos; and the folds' stages.

    Raises DataError where the ratings of the other folds are not of both kinds.
    """
    figures = _Figures(rankings)
    rated, folds = _rated_figures(figures, ratings), fold_of(figures.segments, seed)
    names = figures.segments.video_ids
    stages = [_fit(*rated, frozenset(names[folds == fold].tolist())) for fold in range(NUM_FOLDS)]
    return StagedRanking(rankings, stages, folds, k), stages
