"""Videos held in memory as uint8, shared by all models of a run within a budget."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from yt8m_assets.data.dataset.ahead import Need, walk
from yt8m_assets.data.dataset.packed import PackedShard
from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.dataset.scan import scan_shards
from yt8m_assets.data.dataset.videos import IndexedVideos, Videos
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.progress import NullProgress, Progress


class MemoryVideos:
    """Videos held in memory as uint8: one array of all frames, one row a second."""

    def __init__(self, source: Videos, progress: Progress | None = None) -> None:
        self.video_ids: Sequence[str] = list(source.video_ids)
        self.num_frames = source.num_frames.copy()
        self._places = [source.where(number) for number in range(len(source))]
        self.shard_uris = list(source.shard_uris)
        self.shard_sizes, self.feature_size = source.shard_sizes.copy(), source.feature_size
        self._first = np.concatenate([[0], np.cumsum(self.num_frames)])
        self.frames = np.empty((int(self._first[-1]), self.feature_size), np.uint8)
        self._damaged = np.zeros(len(self.video_ids), bool)
        self._annotations: list[tuple[np.ndarray, SegmentLabels | None]] = []
        with (progress or NullProgress()).task("loading videos", len(self.video_ids), "videos") as task:
            for number in walk(source):
                self._damaged[number] = source.damaged(np.array([number]))[0]
                if not self._damaged[number]:
                    self.frames[self._first[number] : self._first[number + 1]] = source.read(number)
                self._annotations.append(source.annotations(number))
                task.advance()
        self.frames.setflags(write=False)

    def __len__(self) -> int:
        return len(self.video_ids)

    def damaged(self, numbers: np.ndarray) -> np.ndarray:
        """bool [B]: which videos (int64 [B]) were set aside as damaged when they were loaded."""
        return self._damaged[numbers]

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Frames [first, first + count) of a video, a read-only view uint8 [count, F]; by default all."""
        start, end = int(self._first[number]), int(self._first[number + 1])
        if self._damaged[number]:
            end = start
        return self.frames[start + first : end if count is None else start + first + count]

    def read_windows(self, numbers: Sequence[int], firsts: Sequence[int], count: int) -> np.ndarray:
        """uint8 [B, count, F]: window b is frames [firsts[b], firsts[b] + count) of video numbers[b], all inside."""
        starts = self._first[np.asarray(numbers, np.int64)] + np.asarray(firsts, np.int64)
        return self.frames[starts[:, None] + np.arange(count)]

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]:
        """Labels (int64 [L]) and ratings of a video."""
        return self._annotations[number]

    def where(self, number: int) -> str:
        """Shard and id of a video, for error messages."""
        return self._places[number]

    def ahead(self, needs: Iterator[Sequence[Need]], *, reach: int = 0, reach_bytes: int = 0) -> None:
        """Nothing is to be fetched."""

    def __iter__(self) -> Iterator[Video]:
        for number, (video_id, (labels, segments)) in enumerate(zip(self.video_ids, self._annotations, strict=True)):
            if self._damaged[number]:
                continue
            yield Video(video_id, self.read(number), labels, segments)


_shared: OrderedDict[tuple[object, ...], MemoryVideos] = OrderedDict()
_MAX_SHARED = 3


def load_videos(
    shards: Sequence[str | PackedShard],
    reading: Reading = RELEASED,
    *,
    memory_budget: int = 0,
    report: ReadReport | None = None,
    progress: Progress | None = None,
) -> Videos:
    """The videos of shards, in memory where their frames fit `memory_budget` bytes, else read on demand.

    shards: as a published index has them, with which nothing is read but what is asked for; or all by their URIs, which
    are indexed first. What is in memory is shared by later calls of this process for the same content, within the
    budget. Raises what reading raises; DataError when there are shards and all are empty.
    """
    report = reading.new_report() if report is None else report
    indices: list[Any] = [shard for shard in shards if isinstance(shard, PackedShard)]
    if len(indices) < len(shards):
        indices = scan_shards([str(shard) for shard in shards], reading, report=report, progress=progress)
    else:
        for index in indices:
            index.tell(report)
    videos = IndexedVideos(indices, reading, report)
    needed = int(videos.num_frames.sum()) * videos.feature_size
    if needed > memory_budget:
        return videos
    parts = [(getattr(index, "held_out", None), getattr(index, "fold", None)) for index in indices]
    content = tuple((index.uri, index.checksum, *part) for index, part in zip(indices, parts, strict=True))
    key = (content, reading)
    if key not in _shared:
        while _shared and (
            len(_shared) >= _MAX_SHARED or needed + sum(held.frames.nbytes for held in _shared.values()) > memory_budget
        ):
            _shared.popitem(last=False)
        _shared[key] = MemoryVideos(videos, progress)
    _shared.move_to_end(key)
    return _shared[key]
