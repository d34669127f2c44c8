"""Fusing rankings: by place (the original's way) or by score.

Place i (from 0) of a list is worth w0 / (i + w0); a segment's score is the weighted sum over the lists, a list that
lacks it adds nothing. Ties keep the order in which the segments were first met, list after list. Source: SPEC 11.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy

import numpy as np

from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.ranking.files import TOP_K, Ranking, RankingSource, RankingWriter
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.sorting import descending_order


def fuse_rankings(
    rankings: Sequence[Mapping[int, Sequence[str]]], weights: Sequence[float], w0: float, k: int = TOP_K
) -> dict[int, list[str]]:
    """Fuse lists of {class: [segment id, best first]} by place; classes in order of first appearance, K ids each.

    `weights`: one per ranking; `w0` > 0. Raises ConfigError for numbers that cannot be used. Source: SPEC section 11.
    """
    check_fusion(len(rankings), weights, w0, k)
    fused = {}
    for class_id in dict.fromkeys(class_id for lists in rankings for class_id in lists):
        scores: dict[str, float] = {}
        for lists, weight in zip(rankings, weights, strict=True):
            for place, name in enumerate(lists.get(class_id, ())):
                scores[name] = scores.get(name, 0.0) + weight * (w0 / (place + w0))
        fused[class_id] = sorted(scores, key=lambda name: -scores[name])[:k]
    return fused


def check_fusion(num_rankings: int, weights: Sequence[float], w0: float, k: int) -> None:
    """Raise ConfigError unless a fusion can be computed with these numbers."""
    if not num_rankings or num_rankings != len(weights):
        raise ConfigError(f"fusion: {len(weights)} weights for {num_rankings} rankings")
    if not (math.isfinite(w0) and w0 > 0):
        raise ConfigError(f"fusion: w0 = {w0}: must be above zero")
    if any(not math.isfinite(weight) or weight < 0 for weight in weights) or sum(weights) <= 0:
        raise ConfigError(f"fusion: weights {list(weights)}: must not be negative, and not all zero")
    if k < 1:
        raise ConfigError(f"fusion: k = {k}: must be at least 1")


def place_weights(w0: float, size: int) -> np.ndarray:
    """w0 / (i + w0) for the places i = 0 .. size - 1, float64."""
    return w0 / (np.arange(size, dtype=np.float64) + w0)


def fuse(rankings: Sequence[RankingSource], weights: Sequence[float], w0: float, k: int = TOP_K) -> Ranking:
    """`fuse_rankings` over arrays: the same lists, ties included; scores are the fused ones, float32."""
    fused = FusedRanking(rankings, weights, w0, k)
    return Ranking.from_entries(((c, *fused.entries(c)) for c in fused.class_ids.tolist()), fused.segments)


def fuse_into(
    writer: RankingWriter, rankings: Sequence[RankingSource], weights: Sequence[float], w0: float, k: int = TOP_K
) -> None:
    """Fuse class by class into files: no ranking is ever whole in memory when the sources are `RankingReader`s.

    The writer is made with the classes and the table of `unified_segments` and `union_of_classes`.
    """
    for class_id, segment, score in fused_classes(rankings, weights, w0, k):
        writer.write(class_id, segment, score)


def union_of_classes(rankings: Sequence[RankingSource]) -> np.ndarray:
    """The classes of any of the rankings, int32, ascending."""
    return np.unique(np.concatenate([ranking.class_ids for ranking in rankings]))


def unified_segments(rankings: Sequence[RankingSource]) -> tuple[Segments, list[np.ndarray | None]]:
    """One table for all rankings, and each ranking's rows in it (None: they are the same rows)."""
    tables = [ranking.segments for ranking in rankings]
    if all(table.same_as(tables[0]) for table in tables):
        return tables[0], [None] * len(tables)
    video_ids = np.unique(np.concatenate([table.video_ids for table in tables]))
    slots = [np.searchsorted(video_ids, table.video_ids)[table.video] for table in tables]
    starts = np.concatenate([table.start for table in tables])
    pairs = np.unique(np.stack([np.concatenate(slots), starts], axis=1), axis=0)
    segments, _ = Segments.sorted(video_ids, pairs[:, 0], pairs[:, 1])
    return segments, [segments.find(table.video_ids, table.video, table.start) for table in tables]


class FusedRanking:
    """A fusion of rankings that is computed class by class as it is asked for: a `RankingSource` of its own.

    Arguments as for `fuse`. Memory: the segment table, and one class's lists.
    """

    def __init__(self, rankings: Sequence[RankingSource], weights: Sequence[float], w0: float, k: int = TOP_K) -> None:
        check_fusion(len(rankings), weights, w0, k)
        self.k, self._rankings, self._weights = k, list(rankings), [float(weight) for weight in weights]
        self.class_ids = union_of_classes(rankings)
        self.segments, self.rows = unified_segments(rankings)
        self._accumulator = _Accumulator(len(self.segments))
        self._worth = place_weights(w0, max(1, *(len(ranking.segments) for ranking in rankings)))

    def with_weights(self, weights: Sequence[float], w0: float) -> "FusedRanking":
        """The same rankings fused with other numbers; shares the tables, so the two are for one thread."""
        check_fusion(len(self._rankings), weights, w0, self.k)
        other = copy(self)
        other._weights, other._worth = [float(weight) for weight in weights], place_weights(w0, self._worth.size)
        return other

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and fused scores float32 [n] of a class, best first."""
        for ranking, weight, row in zip(self._rankings, self._weights, self.rows, strict=True):
            segment = ranking.entries(class_id)[0]
            self._accumulator.add(segment if row is None else row[segment], weight * self._worth[: segment.size])
        return self._accumulator.best(self.k)


def fused_classes(
    rankings: Sequence[RankingSource],
    weights: Sequence[float],
    w0: float,
    k: int = TOP_K,
    class_ids: Sequence[int] | None = None,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (class, segment int32 [n], fused score float32 [n]) class by class, ascending (or the given classes)."""
    fused = FusedRanking(rankings, weights, w0, k)
    for class_id in fused.class_ids.tolist() if class_ids is None else class_ids:
        yield class_id, *fused.entries(class_id)


class _Accumulator:
    """Sums the worth of segments over lists; remembers the order in which they came."""

    def __init__(self, num_segments: int) -> None:
        self._sum = np.zeros(num_segments, np.float64)
        self._met = np.zeros(num_segments, bool)
        self._new: list[np.ndarray] = []

    def add(self, segment: np.ndarray, worth: np.ndarray) -> None:
        """Add a list: its segments (each once) and what their places are worth."""
        rows = segment.astype(np.intp)  # once, not at every indexing
        new = rows[~self._met.take(rows)] if self._new else rows
        self._met[new] = True
        self._new.append(new)
        np.add.at(self._sum, rows, worth)

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best K segments int32 and their sums float32, best first; then forgets everything."""
        met = np.concatenate(self._new)
        sums = self._sum.take(met)
        if met.size * 8 > self._sum.size:
            self._sum.fill(0.0)
            self._met.fill(False)
        else:
            self._sum[met], self._met[met] = 0.0, False
        self._new = []
        order = _best_first(sums, k)
        return met.take(order).astype(np.int32), sums.take(order).astype(np.float32)


def _best_first(sums: np.ndarray, k: int) -> np.ndarray:
    """Indices of the K largest of float64 [n], largest first, equal ones in their order: exactly a stable sort."""
    if sums.size <= k:
        return descending_order(sums)
    chosen = np.flatnonzero(sums >= np.partition(sums, sums.size - k)[sums.size - k])
    return chosen[descending_order(sums[chosen])[:k]]


def average_scores(rankings: Sequence[RankingSource], weights: Sequence[float], k: int = TOP_K) -> Ranking:
    """Fuse by the weighted mean of the scores instead of the places, in memory: see `AveragedRanking`."""
    averaged = AveragedRanking(rankings, weights, k)
    return Ranking.from_entries(((c, *averaged.entries(c)) for c in averaged.class_ids.tolist()), averaged.segments)


class AveragedRanking:
    """Fusion by the weighted mean of the scores, class by class (a `RankingSource`): the alternative to compare with.

    A segment that a list lacks was cut from it: it takes that list's lowest score, the most it can have had. Ties are
    in the order of (video id, start). Raises DataError when a ranking holds nothing for a class of the others.
    """

    def __init__(self, rankings: Sequence[RankingSource], weights: Sequence[float], k: int = TOP_K) -> None:
        check_fusion(len(rankings), weights, 1.0, k)
        self._rankings, self.k = list(rankings), k
        self._shares = np.asarray(weights, np.float64) / np.sum(weights)
        self.class_ids = union_of_classes(rankings)
        self.segments, self._rows = unified_segments(rankings)

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and mean scores float32 [n] of a class, best first."""
        sums, met = np.zeros(len(self.segments)), np.zeros(len(self.segments), bool)
        for ranking, share, row in zip(self._rankings, self._shares, self._rows, strict=True):
            segment, score = ranking.entries(class_id)
            if not segment.size:
                raise DataError(f"score average: a ranking holds nothing for class {class_id}")
            segment = segment if row is None else row[segment]
            met[segment] = True
            sums += share * float(score[-1])
            sums[segment] += share * (score.astype(np.float64) - float(score[-1]))
        candidates = np.flatnonzero(met)
        order = _best_first(sums[candidates], self.k)
        return candidates[order].astype(np.int32), sums[candidates[order]].astype(np.float32)
