"""Windows of whole videos with video labels: what the models are pre-trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from yt8m_assets.data.dataset.ahead import Need, ReadAhead, shard_needs
from yt8m_assets.data.dataset.batches import Batch, BatchStream, JointBatch, Part, multi_hot
from yt8m_assets.data.dataset.memory import MemoryVideos
from yt8m_assets.data.dataset.order import ShuffledOrder, SpreadOrder, Uniforms
from yt8m_assets.data.dataset.parts import content_checksum
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.data.dataset.views import Look, View, union, window_starts
from yt8m_assets.errors import ConfigError, DataError, VocabularyError

FEW = 16
"""A video of this many times the frames that are drawn from is read frame by frame, not as a whole."""
_PLANNED = 2**18


class _Epoch(NamedTuple):
    """The draws of an epoch of N videos, W windows each."""

    order: ShuffledOrder | SpreadOrder
    """int64 [N * W]: the video of each example."""
    uniforms: Uniforms
    """float32 [N * W]: where in its video each window starts."""


class PretrainingDataset(BatchStream):
    """Endless shuffled epochs over videos, each `windows_per_video` times an epoch, as far apart as
    `shuffle_buffer` allows: within an epoch a batch no larger than that holds no video twice. A batch that ends one
    epoch and begins the next may hold a window of each, for every epoch is drawn by itself.

    window_frames = n draws n contiguous frames, the start uniform in [0, max(num_frames - n, 0)]; a shorter video
    repeats its last frame (SPEC section 2, "random sequence"). None gives whole videos, padded to the longest of the
    batch. `views` says more than that: what of its window a model draws, or what several models do. Deterministic in
    seed and epoch whatever the number of workers; see `BatchStream` for ranks and states.
    A record that is found damaged only now is set aside under "quarantine", and the next sound video stands for it.
    Raises VocabularyError when a label lies outside the vocabulary, and what reading raises.
    """

    def __init__(
        self,
        videos: Videos,
        *,
        num_classes: int,
        batch_size: int,
        window_frames: int | None = None,
        views: Sequence[View] = (),
        seed: int = 0,
        shuffle_buffer: int = 16384,
        windows_per_video: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if window_frames is not None and window_frames < 1:
            raise ConfigError(f"window_frames = {window_frames}: must be at least 1, or None for whole videos")
        if windows_per_video < 1:
            raise ConfigError(f"windows_per_video = {windows_per_video}: must be at least 1")
        self.videos = videos
        self.num_classes = num_classes
        self.shuffle_buffer, self.windows_per_video = shuffle_buffer, windows_per_video
        super().__init__(
            num_examples=len(videos) * windows_per_video,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=0 if isinstance(videos, MemoryVideos) else num_workers,  # memory needs no processes
            pin=pin_memory,
            views=tuple(views) or (View(window_frames=window_frames),),
        )

    def identity(self) -> dict[str, Any]:
        """Seed, sizes, and a checksum of the videos' ids and lengths."""
        apart = {"windows": "apart"} if self.windows_per_video > 1 else {}  # they once followed each other
        return {
            **apart,
            "kind": "pretraining",
            "seed": self.seed,
            "num_examples": self.num_examples,
            "views": [asdict(view) for view in self.views],
            "windows_per_video": self.windows_per_video,
            "shuffle_buffer": self.shuffle_buffer,
            "content": self._content,
        }

    @cached_property
    def _content(self) -> int:
        return content_checksum(self.videos)

    def plan_epoch(self, generator: np.random.Generator) -> _Epoch:
        """The order of the videos and the windows' uniform draws."""
        order = ShuffledOrder(self.videos.shard_sizes, self.shuffle_buffer, generator)
        spread = (
            SpreadOrder(order, self.windows_per_video, self.shuffle_buffer) if self.windows_per_video > 1 else order
        )
        return _Epoch(spread, Uniforms(self.num_examples, generator))

    def ahead(self) -> ReadAhead | None:
        """Fetching the shards of the coming shuffle window."""
        reach = min(self.shuffle_buffer, len(self.videos)) * self.windows_per_video
        return self.videos.ahead(self._needs(self.position, max(4 * reach, _PLANNED)), reach=reach)

    def _needs(self, position: int, step: int) -> Iterator[list[Need]]:
        """Which shards the stream needs from a position on, so many examples at a time."""
        ends = np.cumsum(self.videos.shard_sizes)
        epoch, number = divmod(position, self.num_examples)
        while True:
            order = self.plan_epoch(np.random.default_rng([self.seed, epoch])).order
            for start in range(number, self.num_examples, step):
                shards = np.searchsorted(ends, order[start : start + step], side="right")
                yield shard_needs(shards, epoch * self.num_examples + start)
            epoch, number = epoch + 1, 0

    def make_batch(self, entries: list[tuple[Any, int]], uniforms: np.ndarray) -> Batch | JointBatch:
        """Read what the views use of the entries' videos, each frame once."""
        numbers = np.array(self._sound([int(plan.order[place]) for plan, place in entries]), np.int64)
        lengths = self.videos.num_frames[numbers]
        where = np.array([plan.uniforms[place] for plan, place in entries], np.float32)
        looks = [view.look(lengths, window_starts(view.window_frames, lengths, where), uniforms) for view in self.views]
        if len(looks) == 1:
            return self._batch(numbers, self._read(numbers, lengths, looks[0].rows, looks[0].valid), looks[0])
        longest = max(int(lengths.max()), 1)
        rows, valid, places = union(looks, lengths, longest)
        batch = self._batch(numbers, self._read(numbers, lengths, rows, valid), looks[0])
        return JointBatch(batch, tuple(Part.of(look, place) for look, place in zip(looks, places, strict=True)))

    def examples(self, numbers: np.ndarray) -> Batch:
        """Some videos (int64 [B]) for evaluation, the same rows each time: whole, or the window in their middle."""
        numbers = np.array(self._sound(numbers.tolist()), np.int64)
        lengths, size = self.videos.num_frames[numbers], self.views[0].window_frames
        look = View(window_frames=size).look(
            lengths,
            0 * lengths if size is None else np.maximum(lengths - size, 0) // 2,
            np.empty((0, len(numbers)), np.float32),
        )
        return self._batch(numbers, self._read(numbers, lengths, look.rows, look.valid), look)

    def _sound(self, numbers: list[int]) -> list[int]:
        """The numbers, damaged videos replaced by the next sound one. Raises DataError when there is none."""
        for _ in range(len(self.videos)):
            damaged = np.flatnonzero(self.videos.damaged(np.array(numbers)))
            if not len(damaged):
                return numbers
            for row in damaged.tolist():
                numbers[row] = (numbers[row] + 1) % len(self.videos)
        raise DataError(f"{self.videos.where(numbers[0])}: damaged, as is every other video; fetch the shards again")

    def _read(self, numbers: np.ndarray, lengths: np.ndarray, rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """uint8 [B, R, F]: frames `rows` (int64 [B, R]) of each video as far as they are valid, zeros after those."""
        count = rows.shape[1]
        frames = np.zeros((*rows.shape, self.videos.feature_size), np.uint8)
        there = valid[:, 0]
        runs = there & (count < lengths) & (np.diff(rows, axis=1) == 1).all(axis=1)
        few = there & ~runs & (FEW * count <= lengths)
        if runs.any():
            frames[runs] = self.videos.read_windows(numbers[runs].tolist(), rows[runs, 0].tolist(), count)
        if few.any():
            single = self.videos.read_windows(np.repeat(numbers[few], count).tolist(), rows[few].ravel().tolist(), 1)
            frames[few] = single.reshape(-1, *frames.shape[1:])
        for row in np.flatnonzero(there & ~runs & ~few).tolist():
            video, wanted = self.videos.read(int(numbers[row])), rows[row, valid[row]]
            everything = np.array_equal(wanted, np.arange(len(video)))
            frames[row, : len(wanted)] = video if everything else video[wanted]
        return frames

    def _batch(self, numbers: np.ndarray, frames: np.ndarray, look: Look) -> Batch:
        import torch

        labels = [self._labels(number) for number in numbers.tolist()]
        batch = Batch(
            frames=torch.from_numpy(frames),
            valid=torch.from_numpy(look.valid),
            num_frames=torch.from_numpy(look.num_frames),
            labels=torch.from_numpy(multi_hot(labels, None, self.num_classes)),
            label_weights=None,
            video_ids=tuple(self.videos.video_ids[number] for number in numbers.tolist()),
            starts=torch.from_numpy(look.starts),
        )
        return Part.of(look, None).take(batch)

    def _labels(self, number: int) -> np.ndarray:
        labels, _ = self.videos.annotations(number)
        check_classes(labels, self.num_classes, self.videos.where(number) if len(labels) else "")
        return labels


def check_classes(class_ids: np.ndarray, num_classes: int, where: str, field: str = "labels") -> None:
    """Raise VocabularyError naming place, field and class when one lies outside 0..num_classes-1."""
    outside = class_ids[(class_ids < 0) | (class_ids >= num_classes)]
    if len(outside):
        raise VocabularyError(f"{where}: {field}: class {int(outside[0])} lies outside the vocabulary of {num_classes}")
