"""Whole videos in blocks: their frames once, and which of them each shifted window of each segment shows.

Shapes: N frames of a block of videos, S segments of it, H shifts, V videos, F features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from yt8m_assets.data.dataset.ahead import walk
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.dataset.windows import SEGMENT_FRAMES, Edges, segment_frame_index
from yt8m_assets.ranking.files import Segments


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How segments are cut and scored (see `PredictionConfig`)."""

    batch_size: int = 512
    """Windows a forward pass sees."""
    edges: Edges = "clamp"
    """What a shifted window shows beyond the video."""
    max_frames: int = 300
    """Frames of a video that are used."""
    top_k: int = 100_000
    """Segments kept per class."""
    precision: str = "float32"
    """Arithmetic of the forward pass."""
    compile: bool = False
    """Compile the models; pays off from some ten thousand segments."""
    trim_start: int = 0
    """Segments at a video's beginning that are ranked last."""
    trim_end: int = 0
    """Segments at a video's end that are ranked last."""
    candidate_classes: int | None = None
    """Classes a video is a candidate for, those of highest mean score; in the others it is ranked last. None: all."""
    video_weight: float = 0.0
    """Weight of a video's own evidence in its segments' scores (`ranking.video_term`)."""

    @property
    def is_by_score(self) -> bool:
        """Whether a segment's rank is its own score's matter, and no other of its video's."""
        return not self.video_weight and self.candidate_classes is None


@dataclass(frozen=True, kw_only=True)
class SegmentIndex:
    """All segments of some videos: the canonical table and where each video's segments lie in it."""

    segments: Segments
    """The table."""
    rows: np.ndarray
    """int32 [all segments]: row in the table, in the order of the videos."""
    first: np.ndarray
    """int64 [V + 1]: a video's segments are rows[first[v] : first[v + 1]]."""

    @classmethod
    def of(cls, videos: Videos) -> "SegmentIndex":
        """A segment starts every 5 seconds (SPEC section 10). Raises DataError for a repeated video id."""
        counts = -(-np.asarray(videos.num_frames, np.int64) // SEGMENT_FRAMES)
        counts[videos.damaged(np.arange(len(counts)))] = 0  # set aside now, before their segments are counted
        first = np.concatenate([[0], np.cumsum(counts)])
        video = np.repeat(np.arange(len(counts)), counts)
        start = (np.arange(first[-1]) - first[video]) * SEGMENT_FRAMES
        segments, rows = Segments.sorted(videos.video_ids, video, start)
        return cls(segments=segments, rows=rows, first=first)


@dataclass(frozen=True)
class Block:
    """Some whole videos: frames uint8 [N, F]; index int64 [H, S, 5] into them (N: a zero row); begins int64 [V]."""

    frames: Tensor
    index: Tensor
    num_frames: Tensor
    rows: np.ndarray
    edge: np.ndarray
    begins: np.ndarray
    past_end: np.ndarray


def read_blocks(
    videos: Videos, index: SegmentIndex, shifts: Sequence[int], options: ScoringOptions, *, pinned: bool = False
) -> Iterator[Block]:
    """Cut the videos, in order, into blocks of about `batch_size` segments; each video is read once.

    In `pinned` (page-locked) memory they are copied to a GPU without waiting for what that computes.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    begin = 0
    for number in walk(videos):
        frames = videos.read(number)
        rows, counts = _cut(len(frames), tuple(shifts), options.edges, options.max_frames)
        if len(counts):
            parts.append((frames, rows, counts))
        if index.first[number + 1] - index.first[begin] >= options.batch_size or number + 1 == len(videos):
            if index.first[number + 1] > index.first[begin]:
                yield _join(parts, index.rows[index.first[begin] : index.first[number + 1]], options, pinned)
            parts, begin = [], number + 1


@lru_cache(maxsize=1024)
def _cut(num_frames: int, shifts: tuple[int, ...], edges: Edges, max_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames int64 [H, S, 5] of a video's windows, and num_frames int64 [S]."""
    cut = [segment_frame_index(num_frames, shift, edges, max_frames) for shift in shifts]
    return np.stack([rows for rows, _, _ in cut]), cut[0][2]


def _join(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], rows: np.ndarray, options: ScoringOptions, pinned: bool
) -> Block:
    def joined(arrays: list[np.ndarray], axis: int = 0) -> Tensor:
        shape = list(arrays[0].shape)
        shape[axis] = sum(array.shape[axis] for array in arrays)
        kind = torch.uint8 if arrays[0].dtype == np.uint8 else torch.int64
        whole = torch.empty(shape, dtype=kind, pin_memory=pinned)
        np.concatenate(arrays, axis=axis, out=whole.numpy())
        return whole

    frames = joined([part[0] for part in parts])
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)])
    shifted = [
        np.where(part[1] < 0, len(frames), part[1] + offset) for part, offset in zip(parts, offsets, strict=False)
    ]
    index = joined(shifted, axis=1)
    sizes = np.array([len(part[2]) for part in parts])
    begins = np.cumsum(sizes) - sizes
    place = np.arange(len(rows)) - np.repeat(begins, sizes)
    return Block(
        frames=frames,
        index=index,
        num_frames=joined([part[2] for part in parts]),
        rows=rows,
        edge=(place < options.trim_start) | (place >= np.repeat(sizes, sizes) - options.trim_end),
        begins=begins,
        past_end=(index.numpy() == len(frames)).any(axis=2).sum(axis=1),
    )
