"""How sure a MAP is: percentile bootstrap over videos, and the difference of two rankings on the same videos.

A round draws as many videos as there are, with replacement; a video drawn w times brings w copies of its rated pairs.
Copies stand next to each other in a list, so with H hits and R items before them, w copies of a positive add
sum_{j=1..w} (H + j) / (R + j) = w - (R - H) (h(R + w) - h(R)), h the harmonic numbers: exact, and one array expression
for all pairs of many rounds.
"""

from dataclasses import dataclass

import numpy as np

from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.evaluation.ranked import rated_places
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.ranking.files import TOP_K, RankingSource

_CELLS = 2_000_000
"""Pairs x rounds that are worked on together (8 bytes each, a handful of arrays)."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its percentile bootstrap interval."""

    value: float
    """The figure on the data as they are."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    standard_error: float
    """Standard deviation over the rounds."""
    confidence: float
    """Share of the rounds between the ends."""
    num_rounds: int
    """Rounds drawn."""


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Whether one ranking is better than another on the same rated pairs."""

    difference: Interval
    """MAP of the first minus MAP of the second, same videos in every round."""
    p_value: float
    """Two-sided: how often a difference of the other sign is drawn, doubled; small means more than noise."""


def bootstrap_map(
    ranking: RankingSource,
    ratings: Ratings,
    num_rounds: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    k: int = TOP_K,
) -> Interval:
    """MAP@K with its percentile bootstrap interval over videos; the same seed draws the same videos.

    Raises DataError when no ranked class has a positive.
    """
    rounds = _rounds([ranking], ratings, num_rounds, seed, k)[0]
    return _interval(rounds, confidence)


def paired_test(
    ranking_a: RankingSource,
    ranking_b: RankingSource,
    ratings: Ratings,
    num_rounds: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    k: int = TOP_K,
) -> PairedTest:
    """Compare two rankings on the same rated pairs, both scored on the same drawn videos.

    Raises DataError when they do not rank the same classes, or no class has a positive.
    """
    if not np.array_equal(ranking_a.class_ids, ranking_b.class_ids):
        raise DataError("paired test: the two rankings hold different classes")
    first, second = _rounds([ranking_a, ranking_b], ratings, num_rounds, seed, k)
    differences = first - second
    drawn = differences[1:][np.isfinite(differences[1:])]
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (drawn.size + 1))
    return PairedTest(difference=_interval(differences, confidence), p_value=p_value)


def _interval(rounds: np.ndarray, confidence: float) -> Interval:
    """Element 0 is the figure itself, the rest are the rounds; a round that drew no positive is left out."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence = {confidence}: must lie between 0 and 1")
    if not np.isfinite(rounds[0]):
        raise DataError("no ranked class has a positive rating: MAP is undefined")
    drawn = rounds[1:][np.isfinite(rounds[1:])]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        value=float(rounds[0]),
        low=float(low),
        high=float(high),
        standard_error=float(drawn.std()),
        confidence=confidence,
        num_rounds=len(rounds) - 1,
    )


def _rounds(rankings: list[RankingSource], ratings: Ratings, num_rounds: int, seed: int, k: int) -> list[np.ndarray]:
    """MAP of each ranking on the data (element 0) and on every round, float64 [1 + num_rounds] each."""
    if num_rounds < 1:
        raise ConfigError(f"num_rounds = {num_rounds}: must be at least 1")
    ranked = ratings.select(np.isin(ratings.class_id, rankings[0].class_ids))
    lists = [_RatedLists(ranking, ranked, k) for ranking in rankings]
    videos = np.unique(ratings.video)
    num_videos = videos.size
    if not num_videos:
        raise DataError("there are no ratings")
    generator = np.random.default_rng(seed)
    results: list[list[np.ndarray]] = [[] for _ in rankings]
    weights = np.zeros((1, ratings.video_ids.size), np.int32)
    weights[0, videos] = 1
    chunk = max(1, _CELLS // max(len(ranked), 1))
    for done in range(0, num_rounds + 1, chunk):
        size = min(chunk, num_rounds + 1 - done)
        if done:
            weights = np.zeros((0, ratings.video_ids.size), np.int32)
        drawn = generator.integers(0, num_videos, (size - len(weights), num_videos))
        counts = np.zeros((len(drawn), ratings.video_ids.size), np.int32)
        np.add.at(counts, (np.arange(len(drawn))[:, None], videos[drawn]), 1)
        weights = np.concatenate([weights, counts])
        for part, rated in zip(results, lists, strict=True):
            part.append(rated.map(weights))
    return [np.concatenate(part) for part in results]


class _RatedLists:
    """The rated pairs of a ranking in list order, ready to be weighted by video."""

    def __init__(self, ranking: RankingSource, ratings: Ratings, k: int) -> None:
        places = rated_places(ranking, ratings, k)
        self.num_classes, group = 0, np.empty(0, np.int64)
        if len(ratings):
            classes, group = np.unique(ratings.class_id, return_inverse=True)
            self.num_classes = classes.size
        positive = np.flatnonzero(ratings.positive)
        self._positive_video, self._positive_group = ratings.video[positive], group[positive]
        found = np.flatnonzero(places >= 0)
        order = found[np.lexsort((places[found], group[found]))]
        self._video, self._group, self._is_positive = ratings.video[order], group[order], ratings.positive[order]
        self._begins = np.searchsorted(self._group, np.arange(self.num_classes))

    def map(self, weights: np.ndarray) -> np.ndarray:
        """MAP under each row of weights (times a video was drawn, int [R, V]), float64 [R]; NaN without positives."""
        drawn = weights[:, self._video]
        items_after = np.cumsum(drawn, axis=1)
        hits_after = np.cumsum(drawn * self._is_positive, axis=1)
        at = np.flatnonzero(self._is_positive)
        owner = self._group[at]
        begins = self._begins[owner]
        items_base = np.where(begins > 0, items_after[:, begins - 1], 0)
        hits_base = np.where(begins > 0, hits_after[:, begins - 1], 0)
        copies = drawn[:, at]
        items = items_after[:, at] - items_base - copies
        misses = items - (hits_after[:, at] - hits_base - copies)
        harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(items_after.max(initial=0)) + 2))])
        gains = copies - misses * (harmonic[items + copies] - harmonic[items])
        sums = _sum_by_group(gains, owner, self.num_classes)
        totals = _sum_by_group(
            weights[:, self._positive_video].astype(np.float64), self._positive_group, self.num_classes
        )
        scored = totals > 0
        precision = np.divide(sums, totals, out=np.zeros_like(sums), where=scored)
        counts = scored.sum(axis=1)
        return np.where(counts > 0, precision.sum(axis=1) / np.maximum(counts, 1), np.nan)


def _sum_by_group(values: np.ndarray, group: np.ndarray, num_groups: int) -> np.ndarray:
    """Sums of the columns [R, n] of each group (group ascending), float64 [R, G]."""
    running = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    ends = np.searchsorted(group, np.arange(num_groups + 1))
    return running[:, ends[1:]] - running[:, ends[:-1]]
