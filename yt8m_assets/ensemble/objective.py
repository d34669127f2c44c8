"""MAP@K of a fusion, from the places of the rated pairs alone: exact, in milliseconds.

Only rated pairs enter the score, so their places in every list are looked up once; a trial is a weighted sum and a
sort of those pairs. What remains is the cut at K of the fused list. A pair cut away matters only if it is positive
(all that follows it is cut as well), and two counts settle nearly every case without looking at the lists. Let t be the
place at which a segment standing there in every list would get the pair's score. A segment whose places are all beyond
t scores less, one whose places are all before t scores more; so if at most K segments have a place up to t somewhere,
the pair is kept, and if more than K have all their places before t, it is cut. Classes left in doubt are fused in full.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.ranked import rated_places
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.ranking.files import TOP_K, RankingSource
from yt8m_assets.ranking.fusion import FusedRanking, check_fusion, place_weights

_CACHE_BYTES = 2**29
_ABSENT = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A part of an objective's ratings."""

    pairs: np.ndarray
    """Which of the objective's pairs belong to it, bool [num_pairs]."""
    num_positives: np.ndarray
    """Positives of each class in it, float64 [C]."""


class _Table:
    """Lists of unequal length (by class, each pair's class ascending) as the rows of one matrix: sorted all at once."""

    def __init__(self, group: np.ndarray, num_groups: int) -> None:
        counts = np.bincount(group, minlength=num_groups)
        column = np.arange(group.size) - (np.cumsum(counts) - counts)[group]
        self._shape = (num_groups, int(counts.max(initial=1)))
        self._begins = np.arange(num_groups)[:, None] * self._shape[1]
        self._cell = group * self._shape[1] + column
        self._places = np.arange(1, self._shape[1] + 1)

    def average_precision(self, scores: np.ndarray, hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Average precision of each list, float64 [G]; equal scores keep their order.

        Arguments: `scores` float64 [n], not negative, or -1 for what is left out; `hits` bool [n], False for that;
        `totals` [G], the positives of each list.
        """
        negated = np.full(self._shape, 2.0)
        negated.put(self._cell, -scores)
        hit = np.zeros(self._shape, bool)
        hit.put(self._cell, hits)
        order = self._order(negated)
        hit = hit.take(order + self._begins)
        precision = hit * np.cumsum(hit, axis=1) / self._places
        return precision.sum(axis=1) / np.maximum(totals, 1)

    def _order(self, negated: np.ndarray) -> np.ndarray:
        """A stable order of each row, as far as it matters: the fast sort is not stable, rows with ties are redone."""
        order = np.argsort(negated, axis=1)
        ordered = negated.take(order + self._begins)
        tied = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] <= 0)).any(axis=1)
        if tied.any():
            order[tied] = np.argsort(negated[tied], axis=1, kind="stable")
        return order


class FusionObjective:
    """MAP@K of `fuse(rankings, weights, w0, k)` against ratings as a function of the weights and w0.

    Raises DataError when no ranked class has a positive.
    """

    def __init__(self, rankings: Mapping[str, RankingSource], ratings: Ratings, k: int = TOP_K) -> None:
        self.keys, self.k = tuple(rankings), k
        self._rankings = list(rankings.values())
        self._fused = FusedRanking(self._rankings, [1.0] * len(rankings), 1.0, k)
        ratings = ratings.select(np.isin(ratings.class_id, self._fused.class_ids))
        self._classes, group = np.unique(ratings.class_id, return_inverse=True)
        self._num_positives = np.bincount(group, weights=ratings.score, minlength=self._classes.size)
        if not self._num_positives.any():
            raise DataError("the rankings hold no class with a positive rating: there is nothing to search for")
        size = max(1, *(len(ranking.segments) for ranking in self._rankings))
        places = np.stack([rated_places(ranking, ratings, size) for ranking in self._rankings])
        # First met, list after list: the order of ties. What is in no list never enters the fused one.
        met = places >= 0
        first = np.argmax(met, axis=0)
        order = np.lexsort((places[first, np.arange(group.size)], first, group))
        order = order[np.asarray(met.any(axis=0))[order]]
        self._all_video, self._all_group, self._all_score = ratings.video, group, ratings.score
        self._group, self._positive = group[order], ratings.positive[order]
        self._video, self._rows = ratings.video[order], ratings.rows_in(self._fused.segments)[order]
        self._places = np.where(met, places, _ABSENT)[:, order]
        self._size = size
        self._bounds = self._cut_bounds()
        self._cut_binds = bool(np.isfinite(self._bounds).any())
        self._as_table = _Table(self._group, self._classes.size)
        self._known_places = np.where(met, places, np.inf)[:, order]
        self._worth: tuple[float, np.ndarray] = (math.nan, np.empty(0))
        self._cache: dict[int, np.ndarray] = {}
        self.num_exact = 0  # classes that had to be fused in full so far

    @property
    def num_pairs(self) -> int:
        """Rated pairs that are in at least one list."""
        return int(self._group.size)

    def __call__(self, w0: float, weights: Mapping[str, float], part: "Part | None" = None) -> float:
        """MAP@K of the fusion; NaN where a part of the ratings has no positive."""
        ordered = [float(weights[key]) for key in self.keys]
        check_fusion(len(ordered), ordered, w0, self.k)
        scores = self._scores(ordered, w0)
        hits = self._positive
        if self._cut_binds:
            hits = hits & self._kept(scores, ordered, w0)
        if part is not None:
            hits, scores = hits & part.pairs, np.where(part.pairs, scores, -1.0)
        totals = self._num_positives if part is None else part.num_positives
        precision = self._as_table.average_precision(scores, hits, totals)
        scored = totals > 0
        return float(precision[scored].mean()) if scored.any() else float("nan")

    def _scores(self, weights: list[float], w0: float) -> np.ndarray:
        """Fused score of every pair, float64 [num_pairs]: added list by list, as the fusion does."""
        if self._worth[0] != w0:  # most moves of a search leave w0 alone
            self._worth = (w0, w0 / (self._known_places + w0))
        scores = np.zeros(self.num_pairs)
        for worth, weight in zip(self._worth[1], weights, strict=True):
            scores += weight * worth
        return scores

    def part(self, videos: np.ndarray) -> "Part":
        """The ratings of the given videos (indices into the ratings' `video_ids`), to score them alone."""
        mine = np.isin(self._all_video, videos)
        totals = np.bincount(self._all_group[mine], weights=self._all_score[mine], minlength=self._classes.size)
        return Part(pairs=np.isin(self._video, videos), num_positives=totals)

    def videos(self) -> np.ndarray:
        """The rated videos, indices into the ratings' `video_ids`."""
        return np.unique(self._all_video)

    def _cut_bounds(self) -> np.ndarray:
        """Per class the places [C, 2] that settle the cut: below the first a pair is kept, above the second it is cut.

        First: the K-th (from 0) smallest of the segments' best places; second: of their worst places. Infinite
        where the fused list cannot grow that long.
        """
        bounds = np.full((self._classes.size, 2), np.inf)
        segments, rows = self._fused.segments, self._fused.rows
        if len(segments) <= self.k:
            return bounds
        for number in np.flatnonzero(self._num_positives).tolist():
            best = np.full(len(segments), _ABSENT, np.int32)
            worst = np.zeros(len(segments), np.int32)
            count = np.zeros(len(segments), np.int32)
            for ranking, row in zip(self._rankings, rows, strict=True):
                segment = ranking.entries(int(self._classes[number]))[0]
                segment = segment if row is None else row[segment]
                place = np.arange(segment.size, dtype=np.int32)
                best[segment] = np.minimum(best[segment], place)
                worst[segment] = np.maximum(worst[segment], place)
                count[segment] += 1
            worst[count < len(self._rankings)] = _ABSENT
            for column, place in enumerate((best, worst)):
                present = place[place != _ABSENT]
                if present.size > self.k:
                    bounds[number, column] = np.partition(present, self.k)[self.k]
        return bounds

    def _kept(self, scores: np.ndarray, weights: list[float], w0: float) -> np.ndarray:
        """bool [num_pairs]: positives cut away are False; where it makes no difference, True."""
        kept = np.ones(self.num_pairs, bool)
        limit = self._bounds[self._group]
        with np.errstate(divide="ignore"):
            level = w0 * (sum(weights) / scores - 1.0)
        # Rounding decides nothing: what is closer than this goes to the full fusion.
        sure = np.isinf(limit[:, 0]) | (level * (1 + 1e-9) + 1e-6 < limit[:, 0])
        lost = level * (1 - 1e-9) - 1e-6 > limit[:, 1]
        kept[lost & self._positive] = False
        doubt = self._positive & ~sure & ~lost
        for number in np.unique(self._group[doubt]).tolist():
            self.num_exact += 1
            self._settle(number, np.flatnonzero(doubt & (self._group == number)), scores, kept, weights, w0)
        return kept

    def _settle(
        self, number: int, pairs: np.ndarray, scores: np.ndarray, kept: np.ndarray, weights: list[float], w0: float
    ) -> None:
        """Decide the pairs in doubt of one class by scoring all its segments; a tie at the cut asks the fusion."""
        worth = np.append(place_weights(w0, self._size), 0.0)
        sums: np.ndarray | float = 0.0
        for slot, weight in zip(self._slots_of_class(number), weights, strict=True):
            sums = sums + (weight * worth)[slot]
        for pair in pairs.tolist():
            above = int(np.count_nonzero(sums > scores[pair]))
            if above >= self.k:
                kept[pair] = False
            elif above + int(np.count_nonzero(sums == scores[pair])) > self.k:
                segment, _ = self._fused.with_weights(weights, w0).entries(int(self._classes[number]))
                kept[pair] = self._rows[pair] in segment

    def _slots_of_class(self, number: int) -> np.ndarray:
        """Place of every segment of a class in every list, int32 [M, n]; the size of the table where a list lacks it.

        The last ones used are kept, up to a limit: the same classes are in doubt trial after trial.
        """
        if number in self._cache:
            return self._cache[number]
        slots = np.full((len(self._rankings), len(self._fused.segments)), self._size, np.int32)
        for slot, ranking, row in zip(slots, self._rankings, self._fused.rows, strict=True):
            segment = ranking.entries(int(self._classes[number]))[0]
            slot[segment if row is None else row[segment]] = np.arange(segment.size, dtype=np.int32)
        slots = np.ascontiguousarray(slots[:, (slots < self._size).any(axis=0)])
        if (len(self._cache) + 1) * slots.nbytes <= _CACHE_BYTES:
            self._cache[number] = slots
        return slots
