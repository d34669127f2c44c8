"""The best K segments of every class from a stream of scores, in O(classes x K) memory.

A class keeps a buffer of scores and row numbers and a running threshold, the K-th best score so far: what lies below it
is dropped on arrival, and a full buffer is cut to K by a partition. Ties - also at the cut - go to the smaller
(video id, start).
"""

from typing import NoReturn

import numpy as np

from yt8m_assets.errors import ConfigError, DataError, NonFiniteError
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.sorting import ascending_order, descending_order

_BLOCK = 8192
"""Segments that are looked at together: large enough to hide the cost of a numpy call, small enough for the cache."""
_ENTERING = 256
"""Entering scores a class that are gathered, on average, before they are sorted in; more for a longer list."""
_SLACK = 1024
"""By how many a class's list may be too long, or by half, before it is cut to shut out more."""


def capacity_of(k: int) -> int:
    """Segments that a class's buffer holds before it is cut to `k`."""
    return k + max(k // 2, _BLOCK)


def max_bytes(num_classes: int, k: int, num_segments: int) -> int:
    """What the buffers of a StreamingTopK can come to take; they are longer, but never filled further."""
    return num_classes * (min(capacity_of(k), num_segments) * 8 + _BLOCK * 4)


class StreamingTopK:
    """Keeps, for each class, the `k` segments with the highest scores.

    Arguments: `class_ids` int [C], the class of each score column; `k`, segments kept per class; `segments`, the
    table that the row numbers of `update` point into.
    """

    def __init__(self, class_ids: np.ndarray, k: int, segments: Segments) -> None:
        self.class_ids = np.asarray(class_ids, np.int32)
        if k < 1:
            raise ConfigError(f"top_k = {k}: must be at least 1")
        if np.unique(self.class_ids).size != self.class_ids.size:
            raise ConfigError("class_ids: a class occurs more than once")
        self.k, self.segments = k, segments
        order = np.argsort(self.class_ids)
        self._order = None if np.array_equal(order, np.arange(order.size)) else order
        self._place = np.argsort(order).astype(np.uint16 if order.size <= 2**16 else np.int64)
        self._capacity = capacity_of(k)
        # Row n is the n-th class in ascending order. Pages of an empty array cost nothing until they are written.
        self._scores = np.empty((self.class_ids.size, self._capacity), np.float32)
        self._rows = np.empty((self.class_ids.size, self._capacity), np.int32)
        self._pending = np.empty((self.class_ids.size, _BLOCK), np.float32)
        self._pending_rows = np.empty(_BLOCK, np.int32)
        self._num_pending = 0
        self._entering: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_entering = 0
        self._count = np.zeros(self.class_ids.size, np.int64)
        self._threshold = np.full(self.class_ids.size, -np.inf, np.float32)
        self.is_open = True
        """Whether every class still takes every segment."""

    def update(self, scores: np.ndarray, rows: np.ndarray | int) -> None:
        """Take in scores float32 [n, C] of the segments in `rows` (int [n], or the first of n consecutive rows).

        A row is given once. Raises NonFiniteError naming class and segment for NaN or infinity, DataError for a row
        that the segment table does not hold.
        """
        scores = np.asarray(scores, np.float32)
        if scores.ndim != 2 or scores.shape[1] != self.class_ids.size:
            raise DataError(f"scores of shape {scores.shape}: expected [segments, {self.class_ids.size}]")
        row_array = np.arange(rows, rows + len(scores)) if isinstance(rows, int) else np.asarray(rows)
        if row_array.shape != (len(scores),):
            raise DataError(f"{row_array.shape} rows for {len(scores)} scored segments")
        if not len(scores):
            return
        self._check(row_array)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            total = scores.sum(dtype=np.float64)
        if not np.isfinite(total):
            refuse_non_finite(scores, row_array, self.class_ids, self.segments)
        row_array = row_array.astype(np.int32)
        done = 0
        while done < len(scores):
            size = min(_BLOCK - self._num_pending, len(scores) - done)
            target = slice(self._num_pending, self._num_pending + size)
            part = scores[done : done + size]
            self._pending[:, target] = (part if self._order is None else part[:, self._order]).T
            self._pending_rows[target] = row_array[done : done + size]
            self._num_pending += size
            done += size
            if self._num_pending == _BLOCK:
                self._flush()

    def _flush(self) -> None:
        """Look at what has gathered: a block at a time, however small the updates are."""
        size, self._num_pending = self._num_pending, 0
        if size:
            self._take(self._pending[:, :size], self._pending_rows[:size])

    def _take(self, block: np.ndarray, rows: np.ndarray) -> None:
        """Append a block float32 [C, n] where it reaches the thresholds."""
        begin, end = int(self._count[0]), int(self._count[0]) + rows.size
        if self.is_open and end <= self._capacity:
            self._scores[:, begin:end], self._rows[:, begin:end] = block, rows
            self._count[:] = end
            return
        entered = block >= self._threshold[:, None]
        for column in np.flatnonzero(entered.any(axis=1)).tolist():
            chosen = np.flatnonzero(entered[column])
            self._append(column, block[column, chosen], rows[chosen])

    def _append(self, column: int, scores: np.ndarray, rows: np.ndarray) -> None:
        """Append at most a block's scores to a class; a full buffer is cut first, which may shut some of them out."""
        if self._count[column] + scores.size > self._capacity:
            self._compact(column)
            kept = scores >= self._threshold[column]
            scores, rows = scores[kept], rows[kept]
        part = slice(int(self._count[column]), int(self._count[column]) + scores.size)
        self._scores[column, part], self._rows[column, part] = scores, rows
        self._count[column] = part.stop

    @property
    def threshold(self) -> np.ndarray:
        """float32 [C], by score column: what lies below cannot enter; -infinity while a class's buffer is not full."""
        return self._threshold[self._place]

    def update_all(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """`update` with finite scores float32 [C, n], class by class."""
        self._check(rows)
        block = scores if self._order is None else scores[self._order]
        for first in range(0, rows.size, _BLOCK):
            part = slice(first, first + _BLOCK)
            self._take(block[:, part], rows[part])

    def _check(self, rows: np.ndarray) -> None:
        if rows.size and (rows.min() < 0 or rows.max() >= len(self.segments)):
            raise DataError(f"a scored segment lies outside the table of {len(self.segments)} segments")

    def update_entering(self, counts: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Take in what of some segments' finite scores reaches the thresholds, all else having been left out.

        Arguments: `counts` int [C], how many each score column has; `rows` int [n] and `scores` float32 [n], column
        after column. Raises DataError for a row that the segment table does not hold.
        """
        self._check(rows)
        self._entering.append((np.repeat(self._place, counts), rows, scores))
        self._num_entering += rows.size
        if self._num_entering >= max(_ENTERING, self.k // 64) * self.class_ids.size:
            self._flush_entering()

    def _flush_entering(self) -> None:
        """Sort in what has entered since the last time."""
        if not self._entering:
            return
        columns, rows, scores = (np.concatenate(parts) for parts in zip(*self._entering, strict=True))
        self._entering, self._num_entering = [], 0
        order = np.argsort(columns, kind="stable")
        rows, scores = rows[order], scores[order]
        ends = np.cumsum(np.bincount(columns, minlength=self.class_ids.size)).tolist()
        for column, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            for first in range(begin, end, _BLOCK):
                part = slice(first, min(first + _BLOCK, end))
                self._append(column, scores[part], rows[part])
            if self._count[column] > self.k + max(self.k // 2, _SLACK):  # what is shut out now need not be sent
                self._compact(column)

    def _compact(self, column: int) -> None:
        """Cut a class's buffer to its K best, in order of arrival, and raise its threshold."""
        count = int(self._count[column])
        if count <= self.k:
            return
        scores, rows = self._scores[column, :count], self._rows[column, :count]
        threshold = np.partition(scores, count - self.k)[count - self.k]
        kept = np.flatnonzero(scores >= threshold)
        if kept.size > self.k:  # a tie at the cut
            is_tied = scores[kept] == threshold
            tied = kept[is_tied]
            by_id = np.argsort(rows[tied], kind="stable")
            excess = kept.size - self.k
            kept = np.sort(np.concatenate([kept[~is_tied], tied[by_id[: tied.size - excess]]]))
        scores[: self.k], rows[: self.k] = scores[kept], rows[kept]
        self._count[column], self._threshold[column], self.is_open = self.k, threshold, False

    def finish(self) -> Ranking:
        """The ranking of everything taken in; frees the buffers. Ties are in the order of (video id, start)."""
        self._flush()
        self._flush_entering()
        counts = [self._sort(column) for column in range(self.class_ids.size)]
        offsets = np.cumsum([0, *counts])
        for buffer in (self._scores, self._rows):
            _close_up(buffer, offsets)
            buffer.resize(int(offsets[-1]), refcheck=False)  # no view of it is left; a copy would double the memory
        ranking = Ranking(
            class_ids=np.sort(self.class_ids),
            offsets=offsets,
            segment=self._rows,
            score=self._scores,
            segments=self.segments,
        )
        self.free()
        return ranking

    def free(self) -> None:
        """Give up what was taken in, and its memory."""
        self._scores, self._rows = np.empty((0, 0), np.float32), np.empty((0, 0), np.int32)
        self._pending, self._entering = np.empty((0, 0), np.float32), []

    def _sort(self, column: int) -> int:
        """Put a class's buffer in its final order, best first; returns its length."""
        self._compact(column)
        count = int(self._count[column])
        scores, rows = self._scores[column, :count], self._rows[column, :count]
        if np.any(rows[1:] < rows[:-1]):
            by_id = ascending_order(rows.astype(np.uint32))
            best_first = by_id[descending_order(scores[by_id])]
        else:
            best_first = descending_order(scores)
        scores[:], rows[:] = scores[best_first], rows[best_first]
        return count


def refuse_non_finite(scores: np.ndarray, rows: np.ndarray, class_ids: np.ndarray, segments: Segments) -> NoReturn:
    """Raise NonFiniteError that names a class and a segment whose score, of float32 [n, C], is no number."""
    row, column = np.argwhere(~np.isfinite(scores))[0]
    raise NonFiniteError(
        f"score of class {class_ids[column]} for segment {segments.name(int(rows[row]))} is "
        f"{scores[row, column]}: the checkpoint or the input is broken; nothing was ranked"
    )


def _close_up(buffer: np.ndarray, offsets: np.ndarray) -> None:
    """Move the beginning of each row [C, capacity] up to its offset in the flat buffer: always towards the front."""
    flat = buffer.reshape(-1)
    for row, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        flat[begin:end] = buffer[row, : end - begin]
