"""Windows of whole videos with video labels: what the models are pre-trained on."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from yt8m_assets.data.dataset.batches import Batch, BatchStream, multi_hot, shuffled_order, spread_windows
from yt8m_assets.data.dataset.memory import MemoryVideos
from yt8m_assets.data.dataset.parts import content_checksum
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.errors import ConfigError, DataError, VocabularyError


class _Epoch(NamedTuple):
    """The draws of an epoch of N videos, W windows each."""

    order: np.ndarray
    """int64 [N * W]: the video of each example."""
    uniforms: np.ndarray
    """float32 [N * W]: where in its video each window starts."""


class PretrainingDataset(BatchStream):
    """Endless shuffled epochs over videos, each `windows_per_video` times an epoch, as far apart as
    `shuffle_buffer` allows: within an epoch a batch no larger than that holds no video twice. A batch that ends one
    epoch and begins the next may hold a window of each, for every epoch is drawn by itself.

    window_frames = n draws n contiguous frames, the start uniform in [0, max(num_frames - n, 0)]; a shorter video
    repeats its last frame (SPEC section 2, "random sequence"). None gives whole videos, padded to the longest of the
    batch. Deterministic in seed and epoch whatever the number of workers; see `BatchStream` for ranks and states.
    A record that is found damaged only now is set aside under "quarantine", and the next sound video stands for it.
    Raises VocabularyError when a label lies outside the vocabulary, and what reading raises.
    """

    def __init__(
        self,
        videos: Videos,
        *,
        num_classes: int,
        batch_size: int,
        window_frames: int | None,
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
        self.num_classes, self.window_frames = num_classes, window_frames
        self.shuffle_buffer, self.windows_per_video = shuffle_buffer, windows_per_video
        super().__init__(
            num_examples=len(videos) * windows_per_video,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            num_ranks=num_ranks,
            num_workers=0 if isinstance(videos, MemoryVideos) else num_workers,  # memory needs no processes
            pin=pin_memory,
        )

    def identity(self) -> dict[str, Any]:
        """Seed, sizes, and a checksum of the videos' ids and lengths."""
        apart = {"windows": "apart"} if self.windows_per_video > 1 else {}  # they once followed each other
        return {
            **apart,
            "kind": "pretraining",
            "seed": self.seed,
            "num_examples": self.num_examples,
            "window_frames": self.window_frames,
            "windows_per_video": self.windows_per_video,
            "shuffle_buffer": self.shuffle_buffer,
            "content": self._content,
        }

    @cached_property
    def _content(self) -> int:
        return content_checksum(self.videos)

    def plan_epoch(self, generator: np.random.Generator) -> _Epoch:
        """The order of the videos and the windows' uniform draws."""
        order = shuffled_order(self.videos.shard_sizes, self.shuffle_buffer, generator)
        if self.windows_per_video > 1:
            order = order[spread_windows(len(order), self.windows_per_video, self.shuffle_buffer)]
        return _Epoch(order, generator.random(self.num_examples, dtype=np.float32))

    def make_batch(self, entries: list[tuple[Any, int]]) -> Batch:
        """Read the entries' windows or whole videos."""
        numbers = self._sound([int(plan.order[place]) for plan, place in entries])
        lengths = self.videos.num_frames[numbers]
        if self.window_frames is None:
            frames, valid = self._whole_videos(numbers, lengths)
            starts = np.zeros(len(numbers), np.int64)
        else:
            uniforms = np.array([plan.uniforms[place] for plan, place in entries], np.float32)
            span = np.maximum(lengths - self.window_frames, 0)
            starts = np.minimum((uniforms * (span + 1).astype(np.float32)).astype(np.int64), span)
            frames, valid = self._windows(numbers, lengths, starts)
        return self._batch(numbers, frames, valid, starts)

    def examples(self, numbers: np.ndarray) -> Batch:
        """Some videos (int64 [B]) for evaluation, the same rows each time: whole, or the window in their middle."""
        numbers = np.array(self._sound(numbers.tolist()), np.int64)
        lengths = self.videos.num_frames[numbers]
        if self.window_frames is None:
            frames, valid = self._whole_videos(numbers.tolist(), lengths)
            return self._batch(numbers.tolist(), frames, valid, np.zeros(len(numbers), np.int64))
        starts = np.maximum(lengths - self.window_frames, 0) // 2
        frames, valid = self._windows(numbers.tolist(), lengths, starts)
        return self._batch(numbers.tolist(), frames, valid, starts)

    def _sound(self, numbers: list[int]) -> list[int]:
        """The numbers, damaged videos replaced by the next sound one. Raises DataError when there is none."""
        for _ in range(len(self.videos)):
            damaged = np.flatnonzero(self.videos.damaged(np.array(numbers)))
            if not len(damaged):
                return numbers
            for row in damaged.tolist():
                numbers[row] = (numbers[row] + 1) % len(self.videos)
        raise DataError(f"{self.videos.where(numbers[0])}: damaged, as is every other video; fetch the shards again")

    def _windows(self, numbers: list[int], lengths: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.window_frames or 0
        frames = np.zeros((len(numbers), size, self.videos.feature_size), np.uint8)
        valid = np.repeat(lengths[:, None] > 0, size, axis=1)
        inside = np.flatnonzero(lengths >= size)
        frames[inside] = self.videos.read_windows([numbers[row] for row in inside], starts[inside].tolist(), size)
        for row in np.flatnonzero((lengths < size) & (lengths > 0)).tolist():
            length = int(lengths[row])
            frames[row, :length] = self.videos.read(numbers[row], 0, length)
            frames[row, length:] = frames[row, length - 1]
        return frames, valid

    def _whole_videos(self, numbers: list[int], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = max(int(lengths.max()), 1)
        frames = np.zeros((len(numbers), longest, self.videos.feature_size), np.uint8)
        for row, (number, length) in enumerate(zip(numbers, lengths.tolist(), strict=True)):
            frames[row, :length] = self.videos.read(number)
        return frames, np.arange(longest)[None, :] < lengths[:, None]

    def _batch(self, numbers: list[int], frames: np.ndarray, valid: np.ndarray, starts: np.ndarray) -> Batch:
        import torch

        labels = [self._labels(number) for number in numbers]
        return Batch(
            frames=torch.from_numpy(frames),
            valid=torch.from_numpy(valid),
            num_frames=torch.from_numpy(valid.sum(axis=1, dtype=np.int64)),
            labels=torch.from_numpy(multi_hot(labels, None, self.num_classes)),
            label_weights=None,
            video_ids=tuple(self.videos.video_ids[number] for number in numbers),
            starts=torch.from_numpy(starts),
        )

    def _labels(self, number: int) -> np.ndarray:
        labels, _ = self.videos.annotations(number)
        check_classes(labels, self.num_classes, self.videos.where(number) if len(labels) else "")
        return labels


def check_classes(class_ids: np.ndarray, num_classes: int, where: str, field: str = "labels") -> None:
    """Raise VocabularyError naming place, field and class when one lies outside 0..num_classes-1."""
    outside = class_ids[(class_ids < 0) | (class_ids >= num_classes)]
    if len(outside):
        raise VocabularyError(f"{where}: {field}: class {int(outside[0])} lies outside the vocabulary of {num_classes}")
