"""Random access to the videos of many shards, by their index and without decoding the rest."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from yt8m_assets.data.examples import FEATURE_NAMES, FEATURE_SIZES
from yt8m_assets.data.framing import FOOTER_BYTES, HEADER_BYTES, local_file, masked_crc
from yt8m_assets.data.index import NOT_LOCATED, ShardIndex
from yt8m_assets.data.parsing import RecordParser
from yt8m_assets.data.video import SegmentLabels, Video
from yt8m_assets.data.windows import MAX_VIDEO_FRAMES
from yt8m_assets.data.wire import frame_header
from yt8m_assets.errors import CorruptShardError, MissingDataError, SchemaMismatchError

_OPEN_FILES = 64


class Videos(Protocol):
    """N videos of M shards, numbered in shard order."""

    video_ids: list[str]
    """Id of each."""
    num_frames: np.ndarray
    """int64 [N]: frames that are used, at most `max_frames`."""
    shard_sizes: np.ndarray
    """int64 [M]: videos in each shard."""
    feature_size: int
    """Bytes of a frame."""

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray: ...

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]: ...

    def where(self, number: int) -> str: ...

    def __iter__(self) -> Iterator[Video]: ...

    def __len__(self) -> int: ...


class IndexedVideos:
    """Videos read from their shards, each window by its own byte ranges; memory does not grow with the data.

    A record's checksum is verified the first time any of it is read in this process.
    """

    def __init__(
        self, indices: Sequence[ShardIndex], *, max_frames: int = MAX_VIDEO_FRAMES, check_crc: bool = True
    ) -> None:
        self.indices = list(indices)
        self.max_frames, self.check_crc = max_frames, check_crc
        self.feature_sizes = self.indices[0].feature_sizes if self.indices else FEATURE_SIZES
        self.feature_size = sum(self.feature_sizes)
        self.video_ids = [name for index in self.indices for name in index.video_ids]
        self.shard_sizes = np.array([len(index.records) for index in self.indices], np.int64)
        self._first = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        frames = [index.records["num_frames"].astype(np.int64) for index in self.indices]
        self.num_frames = np.minimum(np.concatenate(frames), max_frames) if frames else np.empty(0, np.int64)
        self._verified = np.zeros(len(self.video_ids), bool)
        self._headers = [len(frame_header(size)) for size in self.feature_sizes]
        self._files: OrderedDict[int, int] = OrderedDict()
        self._parsers: dict[int, RecordParser] = {}

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": OrderedDict(), "_parsers": {}}  # open files stay with their process

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Frames [first, first + count) of a video, uint8 [count, F]; by default all that are used.

        Raises CorruptShardError when a checksum or a frame's header is not what the index found.
        """
        shard, row = self._locate(number)
        record = self.indices[shard].records[row]
        count = int(self.num_frames[number]) - first if count is None else count
        if record["rgb_start"] == NOT_LOCATED:
            return self._whole(shard, row, number)[first : first + count]
        if not count:
            return np.empty((0, self.feature_size), np.uint8)
        if self.check_crc and not self._verified[number]:
            return self._slice(self._record_bytes(shard, row, number), record, first, count)
        data_start = int(record["offset"]) + HEADER_BYTES
        frames = np.empty((count, self.feature_size), np.uint8)
        column = 0
        descriptor = self._file(shard)
        for name, size, header in zip(("rgb_start", "audio_start"), self.feature_sizes, self._headers, strict=True):
            stride = size + header
            content = os.pread(descriptor, count * stride, data_start + int(record[name]) + first * stride)
            if len(content) != count * stride or not content.startswith(frame_header(size)):
                raise self._changed(shard, row)
            frames[:, column : column + size] = np.frombuffer(content, np.uint8).reshape(count, stride)[:, header:]
            column += size
        return frames

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]:
        """Labels (int64 [L]) and ratings of a video."""
        shard, row = self._locate(number)
        record = self.indices[shard].records[row]
        if record["rgb_start"] == NOT_LOCATED:
            video = self._parse_video(shard, row, number)
            return video.labels, video.segments
        start = int(record["offset"]) + HEADER_BYTES + int(record["context_start"])
        content = os.pread(self._file(shard), int(record["context_length"]), start)
        try:
            video_id, labels, segments = self._parser(shard).context(memoryview(content))
        except ValueError as error:
            raise self._changed(shard, row) from error
        if video_id != self.video_ids[number]:
            raise self._changed(shard, row)
        return labels, segments

    def where(self, number: int) -> str:
        """Shard and id of a video, for error messages."""
        return f"{self.indices[self._locate(number)[0]].uri}: video {self.video_ids[number]}"

    def __iter__(self) -> Iterator[Video]:
        for number, video_id in enumerate(self.video_ids):
            labels, segments = self.annotations(number)
            yield Video(video_id, self.read(number), labels, segments)

    def _locate(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return shard, int(number - self._first[shard])

    def _file(self, shard: int) -> int:
        descriptor = self._files.get(shard)
        if descriptor is None:
            uri = self.indices[shard].uri
            try:
                descriptor = os.open(local_file(uri), os.O_RDONLY)
            except FileNotFoundError as error:
                raise MissingDataError(f"{uri}: the shard was there when it was indexed and is gone") from error
            self._files[shard] = descriptor
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(shard)
        return descriptor

    def _parser(self, shard: int) -> RecordParser:
        if shard not in self._parsers:
            self._parsers[shard] = RecordParser(self.indices[shard].uri, self.feature_sizes)
        return self._parsers[shard]

    def _changed(self, shard: int, row: int) -> CorruptShardError:
        index = self.indices[shard]
        reason = "the shard has changed since it was indexed; remove its index and run again"
        return CorruptShardError(index.uri, int(index.records["offset"][row]), row, reason)

    def _record_bytes(self, shard: int, row: int, number: int) -> memoryview:
        record = self.indices[shard].records[row]
        length = int(record["length"])
        content = memoryview(os.pread(self._file(shard), length + FOOTER_BYTES, int(record["offset"]) + HEADER_BYTES))
        if len(content) != length + FOOTER_BYTES:
            raise self._changed(shard, row)
        if self.check_crc and not self._verified[number]:
            if masked_crc(content[:length]) != int.from_bytes(content[length:], "little"):
                reason = "the checksum of the record's data is wrong"
                raise CorruptShardError(self.indices[shard].uri, int(record["offset"]), row, reason)
            self._verified[number] = True
        return content[:length]

    def _slice(self, content: memoryview, record: np.ndarray, first: int, count: int) -> np.ndarray:
        frames = np.empty((count, self.feature_size), np.uint8)
        column = 0
        for name, size, header in zip(("rgb_start", "audio_start"), self.feature_sizes, self._headers, strict=True):
            stride = size + header
            start = int(record[name]) + first * stride
            rows = np.frombuffer(content, np.uint8, count * stride, start).reshape(count, stride)
            frames[:, column : column + size] = rows[:, header:]
            column += size
        return frames

    def _parse_video(self, shard: int, row: int, number: int) -> Video:
        content = self._record_bytes(shard, row, number)
        return self._parser(shard).parse(content, int(self.indices[shard].records["offset"][row]), row)

    def _whole(self, shard: int, row: int, number: int) -> np.ndarray:
        video = self._parse_video(shard, row, number)
        if video.frames is None:
            index = self.indices[shard]
            reason = f"expected the feature lists {' and '.join(FEATURE_NAMES)}, got a video-level record"
            raise SchemaMismatchError(index.uri, int(index.records["offset"][row]), row, reason)
        return video.frames[: int(self.num_frames[number])]
