"""Rated segments: what the models are fine-tuned on and measured by."""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.data.dataset.batches import Batch, BatchStream, JointBatch, Part, multi_hot
from yt8m_assets.data.dataset.ratings import SegmentRatings, collect_ratings
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.dataset.views import View
from yt8m_assets.data.dataset.windows import SEGMENT_FRAMES
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import NullProgress, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, kw_only=True)
class Mining:
    """Negatives among the classes that nobody rated: what neither a label nor a rating of the video names."""

    classes: np.ndarray
    """The rated classes, int [K]: of these alone negatives are taken."""
    positive: float
    """Factor of a rated positive; a rated negative has 1."""
    negative: float
    """Factor of the mean over a segment's mined negatives."""


class SegmentTable:
    """S distinct rated segments, in order of first appearance, with their ratings and frames (SPEC section 1).

    A segment's rows are its 5 seconds; those outside the video are not valid.
    Frames lie in memory as uint8 where they fit `memory_budget` bytes, else they are read when asked for.
    """

    def __init__(
        self,
        videos: Videos,
        *,
        num_classes: int,
        segment_classes: np.ndarray | None = None,
        memory_budget: int = 0,
        progress: Progress | None = None,
    ) -> None:
        numbers, ratings = collect_ratings(videos, num_classes, segment_classes)
        self.ratings: SegmentRatings = ratings
        self.num_classes, self._videos = num_classes, videos
        distinct, rank = np.unique(ratings.starts, return_inverse=True)
        keys = numbers * max(len(distinct), 1) + rank  # a start may be any int64: it is not packed as it is
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        appearance = np.argsort(first, kind="stable")
        place = np.empty_like(appearance)
        place[appearance] = np.arange(len(appearance))
        self.rating_segments = place[group.reshape(-1)]
        """int64 [R]: which segment each rating is of."""
        rows = first[appearance]
        self.numbers, self.starts = numbers[rows], ratings.starts[rows]
        self.video_ids = [ratings.video_ids[row] for row in rows]
        by_segment = np.argsort(self.rating_segments, kind="stable")
        self._class_ids, self._scores = ratings.class_ids[by_segment], ratings.scores[by_segment]
        self._first = np.searchsorted(self.rating_segments[by_segment], np.arange(len(rows) + 1))
        size = len(rows) * SEGMENT_FRAMES * videos.feature_size
        self._named: dict[int, np.ndarray] = {}
        self._held: tuple[np.ndarray, np.ndarray] | None = None
        if size <= memory_budget:
            self._held = self._load(progress or NullProgress())

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def in_memory(self) -> bool:
        """Whether the frames are held in memory."""
        return self._held is not None

    @property
    def segment_ids(self) -> list[str]:
        """`video_id:start` of each segment."""
        return [f"{name}:{start}" for name, start in zip(self.video_ids, self.starts.tolist(), strict=True)]

    def frames(self, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [B, 5, F] and validity bool [B, 5] of some segments (int64 [B])."""
        if self._held is not None:
            return self._held[0][segments], self._held[1][segments]
        frames = np.zeros((len(segments), SEGMENT_FRAMES, self._videos.feature_size), np.uint8)
        valid = np.zeros((len(segments), SEGMENT_FRAMES), bool)
        for row, segment in enumerate(segments.tolist()):
            self._read(segment, frames[row], valid[row])
        return frames, valid

    def annotations(self, segments: np.ndarray, mining: Mining | None = None) -> tuple[np.ndarray, np.ndarray]:
        """labels float32 [B, C] (scores scattered), label weights float32 [B, C]: 1 where rated, or as mining says."""
        spans = [slice(self._first[segment], self._first[segment + 1]) for segment in segments.tolist()]
        classes = [self._class_ids[span] for span in spans]
        scores = [self._scores[span] for span in spans]
        labels, weights = multi_hot(classes, scores, self.num_classes), multi_hot(classes, None, self.num_classes)
        if mining is not None:
            weights *= 1 + np.float32(mining.positive - 1) * labels
            for row, number in enumerate(self.numbers[segments].tolist()):
                unnamed = np.setdiff1d(mining.classes, self._names(number))
                weights[row, unnamed] = mining.negative / max(len(unnamed), 1)
        return labels, weights

    def _names(self, number: int) -> np.ndarray:
        """Classes that a label of the video names, or a rating of any of its segments here: int64, sorted."""
        if number not in self._named:
            if not self._named:
                self._by_video = np.argsort(self.numbers, kind="stable")
            span = np.searchsorted(self.numbers, [number, number + 1], sorter=self._by_video)
            rated = [
                self._class_ids[self._first[segment] : self._first[segment + 1]]
                for segment in self._by_video[slice(*span)].tolist()
            ]
            labels, _ = self._videos.annotations(number)
            self._named[number] = np.unique(np.concatenate([labels, *rated]))
        return self._named[number]

    def inputs(self, segments: np.ndarray, whole: bool = False) -> "tuple[torch.Tensor, ...]":
        """As tensors: frames uint8 [B, 5, F], validity bool [B, 5], `num_frames` int64 [B].

        `num_frames` is 5 for all, as in the original. With `whole` the frames are those of its video [B, T, F], and a
        fourth tensor int64 [B, 1] says where in it each segment starts.
        """
        import torch

        if whole:
            return self._whole(segments)
        frames, valid = self.frames(segments)
        num_frames = torch.full((len(segments),), SEGMENT_FRAMES, dtype=torch.int64)
        return torch.from_numpy(frames), torch.from_numpy(valid), num_frames

    def _whole(self, segments: np.ndarray) -> "tuple[torch.Tensor, ...]":
        import torch

        numbers, row = np.unique(self.numbers[segments], return_inverse=True)
        lengths = self._videos.num_frames[numbers].astype(np.int64)
        frames = np.zeros((len(numbers), max(int(lengths.max()), 1), self._videos.feature_size), np.uint8)
        for place, number in enumerate(numbers.tolist()):
            video = self._videos.read(number)
            frames[place, : len(video)] = video
        valid = np.arange(frames.shape[1]) < lengths[:, None]
        parts = frames[row], valid[row], lengths[row], self.starts[segments][:, None]
        return tuple(torch.from_numpy(part) for part in parts)

    def batch(self, segments: np.ndarray, mining: Mining | None = None, whole: bool = False) -> Batch:
        """A training batch: `inputs`, and labels and weights over all classes."""
        import torch

        frames, valid, num_frames, *index = self.inputs(segments, whole)
        labels, weights = self.annotations(segments, mining)
        return Batch(
            frames=frames,
            valid=valid,
            num_frames=num_frames,
            labels=torch.from_numpy(labels),
            label_weights=torch.from_numpy(weights),
            video_ids=tuple(self.video_ids[segment] for segment in segments.tolist()),
            starts=torch.from_numpy(self.starts[segments]),
            frame_index=index[0] if index else None,
        )

    def _read(self, segment: int, frames: np.ndarray, valid: np.ndarray) -> None:
        number = int(self.numbers[segment])
        first = int(self.starts[segment])
        count = min(SEGMENT_FRAMES, int(self._videos.num_frames[number]) - first)
        if count > 0:
            frames[:count] = self._videos.read(number, first, count)
            valid[:count] = True

    def _load(self, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        frames = np.zeros((len(self), SEGMENT_FRAMES, self._videos.feature_size), np.uint8)
        valid = np.zeros((len(self), SEGMENT_FRAMES), bool)
        with progress.task("loading segments", len(self), "segments") as task:
            for segment in range(len(self)):
                self._read(segment, frames[segment], valid[segment])
                task.advance()
        return frames, valid


class SegmentDataset(BatchStream):
    """Endless shuffled epochs over rated segments; see `BatchStream` for ranks and states.

    labels = the scores scattered at the rated classes, label_weights = 1 where rated (SPEC section 1), or as `mining`
    says. Several datasets of a run may share a table.
    """

    def __init__(
        self,
        table: SegmentTable,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        views: Sequence[View] = (),
        mining: Mining | None = None,
    ) -> None:
        self.table, self.mining = table, mining
        whole = any(view.sampling == "video" for view in views)
        if whole and len(views) > 1:
            raise ConfigError("rated segments with their whole videos are read for one model at a time")
        super().__init__(
            num_examples=len(table),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=0 if table.in_memory and not whole else num_workers,
            pin=pin_memory,
            views=tuple(views) or (View(),),
        )

    def identity(self) -> dict[str, Any]:
        """Seed, size, views, and a checksum of the segments' ids."""
        content = zlib.crc32("\n".join(self.table.segment_ids).encode())
        views = [asdict(view) for view in self.views]
        about = {"kind": "segments", "seed": self.seed, "num_examples": self.num_examples, "views": views}
        return {**about, "content": content}

    def plan_epoch(self, generator: np.random.Generator) -> np.ndarray:
        """A uniform permutation."""
        return generator.permutation(self.num_examples)

    def make_batch(self, entries: list[tuple[Any, int]], uniforms: np.ndarray) -> Batch | JointBatch:
        """The batch of the drawn segments, and what the views take of their frames."""
        segments = np.array([plan[place] for plan, place in entries], np.int64)
        if self.views[0].sampling == "video":
            return self.table.batch(segments, self.mining, whole=True)
        batch = self.table.batch(segments, self.mining)
        valid, lengths, starts = (tensor.numpy() for tensor in (batch.valid, batch.num_frames, batch.starts))
        parts = []
        for view in self.views:
            look = view.look(lengths, np.zeros_like(lengths), uniforms)
            there = np.take_along_axis(valid, look.rows, axis=1)
            place = None if look.rows.shape == valid.shape else look.rows
            parts.append(Part.of(look._replace(valid=there, starts=starts), place))
        return parts[0].take(batch) if len(parts) == 1 else JointBatch(batch, tuple(parts))
