"""Random access to the videos of many shards, by their index and without decoding the rest."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from yt8m_assets.data.examples import FEATURE_NAMES, FEATURE_SIZES
from yt8m_assets.data.framing import FOOTER_BYTES, HEADER_BYTES, MappedFile, local_file, masked_crc
from yt8m_assets.data.index import NOT_LOCATED, ShardIndex
from yt8m_assets.data.parsing import RecordParser
from yt8m_assets.data.video import SegmentLabels, Video
from yt8m_assets.data.windows import MAX_VIDEO_FRAMES
from yt8m_assets.data.wire import frame_header
from yt8m_assets.errors import CorruptShardError, MissingDataError, SchemaMismatchError

_REBUILD = "run again to index it anew"
_OPEN_FILES = 64
_TOUCHED_PER_READ = 128 * 2**10
"""Pages that the system maps around the two places a window is read from."""
_MAX_TOUCHED = 512 * 2**20
"""Mapped pages are given back when about this many bytes have gathered, so that memory stays flat."""


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

    def read_windows(self, numbers: Sequence[int], firsts: Sequence[int], count: int) -> np.ndarray: ...

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
        self._shard = np.repeat(np.arange(len(self.indices), dtype=np.int32), self.shard_sizes)
        self._starts = [self._absolute(name) for name in ("rgb_start", "audio_start")]
        self._headers = [frame_header(size) for size in self.feature_sizes]
        self._files: OrderedDict[int, MappedFile] = OrderedDict()
        self._touched = 0
        self._parsers: dict[int, RecordParser] = {}

    def __len__(self) -> int:
        return len(self.video_ids)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_files": OrderedDict(), "_parsers": {}}  # open files stay with their process

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Frames [first, first + count) of a video, uint8 [count, F]; by default all that are used.

        Raises CorruptShardError when a checksum or a frame's header is not what the index found.
        """
        number = int(number)
        count = self.num_frames.item(number) - first if count is None else count
        if self._starts[0].item(number) < 0:
            return self._whole(number)[first : first + count]
        if not count:
            return np.empty((0, self.feature_size), np.uint8)
        if self.check_crc and not self._verified.item(number):
            self._record(number)
        view = self._file(self._shard.item(number)).view
        frames = np.empty((count, self.feature_size), np.uint8)
        column = 0
        for starts, size, header in zip(self._starts, self.feature_sizes, self._headers, strict=True):
            skip = len(header)
            start = starts.item(number) + first * (skip + size)
            if bytes(view[start : start + skip]) != header:
                raise self._changed(number)
            rows: np.ndarray = np.ndarray((count, size), np.uint8, view, start + skip, (skip + size, 1))
            frames[:, column : column + size] = rows
            column += size
        self._note_touched(_TOUCHED_PER_READ + frames.nbytes)
        return frames

    def read_windows(self, numbers: Sequence[int], firsts: Sequence[int], count: int) -> np.ndarray:
        """uint8 [B, count, F]: window b is frames [firsts[b], firsts[b] + count) of video numbers[b], all inside."""
        frames = np.empty((len(numbers), count, self.feature_size), np.uint8)
        chosen = np.asarray(numbers, np.int64)
        plain = (self._starts[0][chosen] >= 0) & (self._verified[chosen] | (not self.check_crc))
        for row in np.flatnonzero(~plain).tolist():
            frames[row] = self.read(numbers[row], firsts[row], count)
        rows = np.flatnonzero(plain)
        shards = self._shard[chosen[rows]].tolist()
        views = {shard: self._file(shard).view for shard in set(shards)}
        column = 0
        for starts, size, header in zip(self._starts, self.feature_sizes, self._headers, strict=True):
            skip, stride, part = len(header), len(header) + size, frames[:, :, column : column + size]
            places = starts[chosen[rows]] + np.asarray(firsts, np.int64)[rows] * stride
            for row, shard, start in zip(rows.tolist(), shards, places.tolist(), strict=True):
                view = views[shard]
                if bytes(view[start : start + skip]) != header:
                    raise self._changed(numbers[row])
                part[row] = np.ndarray((count, size), np.uint8, view, start + skip, (stride, 1))
            column += size
        self._note_touched(len(rows) * _TOUCHED_PER_READ)
        return frames

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]:
        """Labels (int64 [L]) and ratings of a video."""
        if self._starts[0].item(number) < 0:
            video = self._parse(number)
            return video.labels, video.segments
        shard, row = self._locate(number)
        record = self.indices[shard].records[row]
        start = int(record["offset"]) + HEADER_BYTES + int(record["context_start"])
        content = self._file(shard).view[start : start + int(record["context_length"])]
        self._note_touched(_TOUCHED_PER_READ // 2)
        try:
            video_id, labels, segments = self._parser(shard).context(content)
        except ValueError as error:
            raise self._changed(number) from error
        if video_id != self.video_ids[number]:
            raise self._changed(number)
        return labels, segments

    def where(self, number: int) -> str:
        """Shard and id of a video, for error messages."""
        return f"{self.indices[self._locate(number)[0]].uri}: video {self.video_ids[number]}"

    def __iter__(self) -> Iterator[Video]:
        for number, video_id in enumerate(self.video_ids):
            labels, segments = self.annotations(number)
            yield Video(video_id, self.read(number), labels, segments)

    def _absolute(self, name: str) -> np.ndarray:
        """int64 [N]: the byte of its shard at which each video's list starts; -1 where protobuf must find it."""
        parts = [np.empty(0, np.int64)]
        for index in self.indices:
            absolute = (index.records["offset"] + HEADER_BYTES + index.records[name]).astype(np.int64)
            parts.append(np.where(index.records["rgb_start"] == NOT_LOCATED, -1, absolute))
        return np.concatenate(parts)

    def _locate(self, number: int) -> tuple[int, int]:
        shard = self._shard.item(number)
        return shard, int(number - self._first[shard])

    def _file(self, shard: int) -> MappedFile:
        file = self._files.get(shard)
        if file is None:
            index = self.indices[shard]
            try:
                file = MappedFile(local_file(index.uri), index.uri)
            except MissingDataError as error:
                raise MissingDataError(f"{index.uri}: the shard was there when it was indexed and is gone") from error
            if file.size != index.size:
                reason = f"it has {file.size:,} bytes, {index.size:,} when it was indexed; {_REBUILD}"
                raise CorruptShardError(index.uri, 0, 0, reason)
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(shard)
        return file

    def _note_touched(self, num_bytes: int) -> None:
        self._touched += num_bytes
        if self._touched > _MAX_TOUCHED:
            self._touched = 0
            if sum(file.size for file in self._files.values()) > _MAX_TOUCHED:
                for file in self._files.values():
                    file.drop()

    def _parser(self, shard: int) -> RecordParser:
        if shard not in self._parsers:
            self._parsers[shard] = RecordParser(self.indices[shard].uri, self.feature_sizes)
        return self._parsers[shard]

    def _changed(self, number: int) -> CorruptShardError:
        shard, row = self._locate(number)
        index = self.indices[shard]
        reason = f"the shard has changed since it was indexed; {_REBUILD}"
        return CorruptShardError(index.uri, int(index.records["offset"][row]), row, reason)

    def _record(self, number: int) -> tuple[memoryview, int]:
        """The data of a record and where it starts; its checksum is verified. Raises CorruptShardError."""
        shard, row = self._locate(number)
        index, view = self.indices[shard], self._file(shard).view
        offset, length = int(index.records["offset"][row]), int(index.records["length"][row])
        end = offset + HEADER_BYTES + length
        content = view[offset + HEADER_BYTES : end]
        if self.check_crc and masked_crc(content) != int.from_bytes(view[end : end + FOOTER_BYTES], "little"):
            raise CorruptShardError(index.uri, offset, row, "the checksum of the record's data is wrong")
        self._verified[number] = True
        self._note_touched(length)
        return content, offset

    def _parse(self, number: int) -> Video:
        content, offset = self._record(number)
        shard, row = self._locate(number)
        return self._parser(shard).parse(content, offset, row)

    def _whole(self, number: int) -> np.ndarray:
        video = self._parse(number)
        if video.frames is None:
            shard, row = self._locate(number)
            reason = f"expected the feature lists {' and '.join(FEATURE_NAMES)}, got a video-level record"
            offset = int(self.indices[shard].records["offset"][row])
            raise SchemaMismatchError(self.indices[shard].uri, offset, row, reason)
        return video.frames[: int(self.num_frames[number])]
