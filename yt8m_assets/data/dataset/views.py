"""Which frames of its videos a training uses: drawn where they are read, so that nothing else need be shipped.

B videos, N draws, R frames that are used of each (SPEC section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


@dataclass(frozen=True, kw_only=True)
class View:
    """A window of each video, or all of it, and what a model draws from that."""

    window_frames: int | None = None
    """Contiguous frames, the start uniform over the video; None: the whole video."""
    sampling: Literal["sequence", "frames", "video"] | None = None
    """What is drawn from those: a run of consecutive frames, or single ones with repetition; None: nothing. "video":
    nothing either, and a rated segment is shown with its whole video."""
    num_draws: int = 0
    """How many."""

    @property
    def num_uniforms(self) -> int:
        """Uniform numbers that an example's draws take, beside the one of its window."""
        return {"sequence": 1, "frames": self.num_draws}.get(self.sampling or "", 0)

    def look(self, lengths: np.ndarray, starts: np.ndarray, uniforms: np.ndarray) -> "Look":
        """The frames of videos of `lengths` (int64 [B]) whose windows have `starts` (int64 [B]).

        uniforms float32 [M, B], of which the first `num_uniforms` rows are used: fewer draws are the first of more.
        """
        longest = max(int(lengths.max()), 1)
        rows, valid, local = window_rows(self.window_frames, lengths, starts, longest)
        index = self._draw(local, uniforms)
        if index is not None and index.shape[1] < rows.shape[1]:
            rows, valid = np.take_along_axis(rows, index, 1), np.take_along_axis(valid, index, 1)
            local = np.full_like(local, index.shape[1])
            index = np.broadcast_to(np.arange(index.shape[1]), index.shape)
        return Look(rows, valid, local, index, starts)

    def _draw(self, lengths: np.ndarray, uniforms: np.ndarray) -> np.ndarray | None:
        if self.sampling in (None, "video"):
            return None
        last = np.maximum(lengths - 1, 0)[:, None]
        if self.sampling == "frames":
            index = (uniforms[: self.num_draws].T * lengths[:, None].astype(np.float32)).astype(np.int64)
            return np.minimum(index, last)
        num_starts = np.maximum(lengths - self.num_draws, 0) + 1
        first = (uniforms[0] * num_starts.astype(np.float32)).astype(np.int64)
        return np.minimum(first[:, None] + np.arange(self.num_draws), last)


class Look(NamedTuple):
    """What a view takes of B videos."""

    rows: np.ndarray
    """int64 [B, R]: frames of the video; 0 where not valid."""
    valid: np.ndarray
    """bool [B, R]: false for padding."""
    num_frames: np.ndarray
    """int64 [B]: what the models get as `num_frames`."""
    frame_index: np.ndarray | None
    """int64 [B, N]: which of these the model looks at, with repetition; None: all."""
    starts: np.ndarray
    """int64 [B]: where the window starts."""


def window_starts(window_frames: int | None, lengths: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Where windows start in videos of `lengths` (int64 [B]), by uniforms float32 [B]; 0 for whole videos."""
    if window_frames is None:
        return np.zeros(len(lengths), np.int64)
    span = np.maximum(lengths - window_frames, 0)
    return np.minimum((uniforms * (span + 1).astype(np.float32)).astype(np.int64), span)


def window_rows(
    window_frames: int | None, lengths: np.ndarray, starts: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows int64 [B, R], validity bool [B, R] and number of frames int64 [B] of windows or whole videos.

    A video shorter than its window repeats its last frame; a whole one is padded to `longest`.
    """
    size = longest if window_frames is None else window_frames
    rows = starts[:, None] + np.arange(size)
    valid = rows < lengths[:, None] if window_frames is None else np.repeat(lengths[:, None] > 0, size, axis=1)
    rows = np.minimum(rows, np.maximum(lengths - 1, 0)[:, None])
    return np.where(valid, rows, 0), valid, valid.sum(axis=1, dtype=np.int64)


Place = np.ndarray | slice | None
"""Where a view finds its frames among those of several: rows int64 [B, R] of each video, columns, or all of them."""


def union(looks: Sequence[Look], lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, list[Place]]:
    """The frames that several views need together: rows int64 [B, R], validity bool [B, R], and the place of each view.

    Whole videos, padded to `longest`, where a view needs those, or all together need as many.
    """
    kept: list[np.ndarray] = []
    for rows in sorted((look.rows for look in looks), key=lambda rows: -rows.shape[1]):
        if not any(_begins(others, rows) for others in kept):
            kept.append(rows)
    if sum(rows.shape[1] for rows in kept) >= longest:
        everything, valid, _ = window_rows(None, lengths, np.zeros_like(lengths), longest)
        return everything, valid, [None if np.array_equal(look.rows, everything) else look.rows for look in looks]
    firsts = np.cumsum([0, *(rows.shape[1] for rows in kept)]).tolist()
    places: list[Place] = []
    for look in looks:
        first = next(first for first, rows in zip(firsts, kept, strict=False) if _begins(rows, look.rows))
        columns = slice(first, first + look.rows.shape[1])
        places.append(None if columns == slice(0, firsts[-1]) else columns)
    rows = np.concatenate(kept, axis=1)
    return rows, np.broadcast_to(lengths[:, None] > 0, rows.shape), places


def _begins(rows: np.ndarray, others: np.ndarray) -> bool:
    return np.array_equal(rows[:, : others.shape[1]], others)
