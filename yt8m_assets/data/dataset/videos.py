"""Random access to the videos of many shards, by their index and without decoding the rest."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from yt8m_assets.data.dataset.ahead import Need, ReadAhead, Source, walk
from yt8m_assets.data.dataset.identity import forget_shard
from yt8m_assets.data.dataset.index import ShardIndex
from yt8m_assets.data.dataset.packed import PackedShard
from yt8m_assets.data.dataset.parts import IndexParts, VideoIds
from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.framing import HEADER_BYTES, OVERHEAD_BYTES, ShardFile, is_remote, read_data
from yt8m_assets.data.records.parsing import NO_LABELS, RecordParser
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.data.records.wire import frame_header
from yt8m_assets.errors import CorruptShardError, MissingDataError
from yt8m_assets.storage.cache import Cache

_REBUILD = "run again to index it anew"
_CHANGED = f"the shard has changed since it was indexed; {_REBUILD}"
_SHORT = "truncated while it was open: the shard ends before the frames that are asked for"
_SET_ASIDE = "it was set aside as damaged"
_OPEN_FILES = 64


class Videos(Protocol):
    """N videos of M shards, numbered in shard order."""

    video_ids: Sequence[str]
    """Id of each."""
    num_frames: np.ndarray
    """int32 [N]: frames that are used, at most `max_frames`; those of a damaged video cannot be read."""
    shard_uris: list[str]
    """Each shard."""
    shard_sizes: np.ndarray
    """int64 [M]: videos in each shard."""
    feature_size: int
    """Bytes of a frame."""

    def damaged(self, numbers: np.ndarray) -> np.ndarray: ...

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray: ...

    def read_windows(self, numbers: Sequence[int], firsts: Sequence[int], count: int) -> np.ndarray: ...

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]: ...

    def where(self, number: int) -> str: ...

    def ahead(self, needs: Iterator[Sequence[Need]], *, reach: int = 0, reach_bytes: int = 0) -> ReadAhead | None: ...

    def __iter__(self) -> Iterator[Video]: ...

    def __len__(self) -> int: ...


class IndexedVideos:
    """Videos read from their shards, each window by its own byte ranges; memory does not grow with the data.

    Nothing of a record is handed out before its checksum was verified once in this process and found to be the indexed
    one. Where it is wrong, reading raises CorruptShardError, or under "quarantine" sets the record aside into `report`.
    Set aside so late it keeps its number, so that an interrupted training finds its order again: it counts as
    `damaged`, has no labels, ratings or frames, and an iteration leaves it out.
    """

    def __init__(
        self,
        indices: Sequence[ShardIndex | PackedShard],
        reading: Reading = RELEASED,
        report: ReadReport | None = None,
    ) -> None:
        self.parts, self.reading = IndexParts(indices), reading
        self.report = reading.new_report() if report is None else report
        self.feature_sizes = indices[0].feature_sizes if indices else FEATURE_SIZES
        self.feature_size = sum(self.feature_sizes)
        self.shard_uris, self.shard_sizes = [index.uri for index in indices], self.parts.sizes
        self._damaged = np.zeros(len(self.parts), bool)
        self._marks: dict[int, object] = {}
        self._begin()

    def _begin(self) -> None:
        """What each process has for itself."""
        self.video_ids: Sequence[str] = VideoIds(self.parts)
        self.num_frames = self.parts.num_frames(self.reading.max_frames)
        self._verified = np.zeros(len(self), bool)
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._parsers: dict[int, RecordParser] = {}

    def __len__(self) -> int:
        return len(self.parts)

    def __getstate__(self) -> dict[str, object]:
        """Open files stay with their process, each verifies for itself, and reads the index from its files."""
        own = ("video_ids", "num_frames", "_verified", "_files", "_parsers")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def damaged(self, numbers: np.ndarray) -> np.ndarray:
        """bool [B]: which videos (int64 [B]) cannot be read. Under "raise" none: reading them raises."""
        return self._verify(numbers) if self.reading.on_corrupt == "quarantine" else np.zeros(len(numbers), bool)

    def read(self, number: int, first: int = 0, count: int | None = None) -> np.ndarray:
        """Frames [first, first + count) of a video, uint8 [count, F]; by default all that are used.

        Raises CorruptShardError when a checksum or a frame's header is not what the index found.
        """
        shard, row = self.parts.locate(int(number))
        read = self._file(shard).read  # first: a file opened anew is verified anew
        if not self._verified.item(number):
            self._verify_one(number)
        if self._damaged.item(number):
            if count:
                raise self._fault(number, _SET_ASIDE)
            return np.empty((0, self.feature_size), np.uint8)
        if count is None:
            count = self.num_frames.item(number) - first
        if not count:
            return np.empty((0, self.feature_size), np.uint8)
        part = self.parts[shard]
        if not part.located.item(row):
            return self._parsed_frames(number)[first : first + count]
        frames, column = np.empty((count, self.feature_size), np.uint8), 0
        for starts, size, header in part.lists:
            stride = len(header) + size
            content = read(starts.item(row) + first * stride, count * stride)
            if len(content) < count * stride:
                raise self._fault(number, _SHORT)
            if not content.startswith(header):
                raise self._changed(number)
            rows: np.ndarray = np.ndarray((count, size), np.uint8, content, len(header), (stride, 1))
            frames[:, column : column + size] = rows
            column += size
        return frames

    def read_windows(self, numbers: Sequence[int], firsts: Sequence[int], count: int) -> np.ndarray:
        """uint8 [B, count, F]: window b is frames [firsts[b], firsts[b] + count) of video numbers[b], all inside."""
        frames, chosen = np.empty((len(numbers), count, self.feature_size), np.uint8), np.asarray(numbers, np.int64)
        of_shard = self.parts.first.searchsorted(chosen, side="right") - 1
        shards, places = of_shard.tolist(), chosen - self.parts.first[of_shard]
        reads = {shard: self._file(shard).read for shard in set(shards)}
        if self._verify(chosen).any():
            raise self._fault(int(chosen[self._damaged[chosen]][0]), _SET_ASIDE)
        parts = [(self.parts[shard], np.flatnonzero(of_shard == shard)) for shard in reads]
        located = np.empty(len(chosen), bool)
        for part, mine in parts:
            located[mine] = part.located[places[mine]]
        for row in np.flatnonzero(~located).tolist():
            frames[row] = self._parsed_frames(numbers[row])[firsts[row] : firsts[row] + count]
        rows = np.flatnonzero(located)
        listed = rows.tolist()
        column = 0
        for feature, size in enumerate(size for size in self.feature_sizes if size):
            header = frame_header(size)
            stride = len(header) + size
            starts = np.asarray(firsts, np.int64) * stride
            for part, mine in parts:
                starts[mine] += part.lists[feature][0][places[mine]]
            begins = starts[rows].tolist()
            contents = [reads[shards[row]](begin, count * stride) for row, begin in zip(listed, begins, strict=True)]
            joined = b"".join(contents)
            if len(joined) != len(rows) * count * stride:
                row = next(row for row, content in zip(listed, contents, strict=True) if len(content) < count * stride)
                raise self._fault(numbers[row], _SHORT)
            lists = np.frombuffer(joined, np.uint8).reshape(len(rows), count, stride)
            wrong = (lists[:, :, : len(header)] != np.frombuffer(header, np.uint8)).any(axis=(1, 2))
            if wrong.any():
                raise self._changed(numbers[rows[wrong][0]])
            target = slice(None) if len(rows) == len(frames) else rows
            frames[target, :, column : column + size] = lists[:, :, len(header) :]
            column += size
        return frames

    def annotations(self, number: int) -> tuple[np.ndarray, SegmentLabels | None]:
        """Labels (int64 [L]) and ratings of a video."""
        content, (shard, row) = None, self.parts.locate(int(number))
        file = self._file(shard)
        if not self._verified.item(number):
            content = self._verify_one(number)
        if self._damaged.item(number):
            return NO_LABELS, None
        part = self.parts[shard]
        if not part.located.item(row):
            video = self._parse(number)
            return video.labels, video.segments
        record = part.index.records[row]
        start, length = int(record["context_start"]), int(record["context_length"])
        if content is None:
            context = file.read(int(record["offset"]) + HEADER_BYTES + start, length)
        else:
            context = bytes(content[start : start + length])
        try:
            video_id, labels, segments = self._parser(shard).context(memoryview(context))
        except ValueError as error:
            raise self._changed(number) from error
        if video_id != self.video_ids[number]:
            raise self._changed(number)
        return labels, segments

    def where(self, number: int) -> str:
        """Shard and id of a video, for error messages."""
        return f"{self.parts.indices[self.parts.locate(number)[0]].uri}: video {self.video_ids[number]}"

    def ahead(self, needs: Iterator[Sequence[Need]], *, reach: int = 0, reach_bytes: int = 0) -> ReadAhead | None:
        """Fetching what lies in a bucket before it is needed (see `ReadAhead`); None where nothing does."""
        sources = [
            Source(index.uri, index.size, index.described) if is_remote(index.uri) else None
            for index in self.parts.indices
        ]
        copies = self.reading.copies or Cache().shards
        return ReadAhead(copies, sources, needs, reach=reach, reach_bytes=reach_bytes) if any(sources) else None

    def __iter__(self) -> Iterator[Video]:
        for number in walk(self):
            labels, segments = self.annotations(number)
            if not self._damaged.item(number):
                yield Video(self.video_ids[number], self.read(number), labels, segments)

    def _file(self, shard: int) -> ShardFile:
        file = self._files.get(shard)
        if file is None:
            index = self.parts.indices[shard]
            try:
                file = ShardFile(index.uri, self.reading.copies, index.described)
            except MissingDataError as error:
                raise MissingDataError(f"{index.uri}: the shard was there when it was indexed and is gone") from error
            if file.size != index.size:
                reason = f"it has {file.size:,} bytes, {index.size:,} when it was indexed; {_REBUILD}"
                raise CorruptShardError(index.uri, 0, 0, reason)
            if self._marks.setdefault(shard, file.mark) != file.mark:  # replaced since: nothing of it was verified
                self._verified[self.parts.first[shard] : self.parts.first[shard + 1]] = False
                self._marks[shard] = file.mark
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(shard)
        return file

    def _parser(self, shard: int) -> RecordParser:
        if shard not in self._parsers:
            uri = self.parts.indices[shard].uri
            self._parsers[shard] = RecordParser(uri, self.feature_sizes, self.reading.classes)
        return self._parsers[shard]

    def _fault(self, number: int, reason: str) -> CorruptShardError:
        shard, row = self.parts.locate(number)
        record = self.parts[shard].index.records[row]
        return CorruptShardError(self.parts.indices[shard].uri, int(record["offset"]), int(record["number"]), reason)

    def _changed(self, number: int) -> CorruptShardError:
        """The error of a shard that is not the indexed one; the next run does not recognise it."""
        if self.reading.cache_path is not None:
            forget_shard(self.parts.indices[self.parts.locate(number)[0]].uri, self.reading.cache_path)
        return self._fault(number, _CHANGED)

    def _verify(self, numbers: np.ndarray) -> np.ndarray:
        """Verify the records that this process has not verified yet; bool [B]: which of them all are damaged."""
        for number in numbers[~self._verified[numbers]].tolist():
            if not self._verified[number]:
                self._verify_one(number)
        return self._damaged[numbers]

    def _verify_one(self, number: int) -> memoryview | None:
        """The data of a record, verified; None where it was set aside. Raises CorruptShardError."""
        shard, row = self.parts.locate(number)
        record, file = self.parts[shard].index.records[row], self._file(shard)
        offset, length = int(record["offset"]), int(record["length"])
        try:
            content, checksum = read_data(file, offset, length, int(record["number"]))
        except CorruptShardError as error:
            if self.reading.on_corrupt == "raise":
                raise
            self.report.set_aside(error, length + OVERHEAD_BYTES)
            self._damaged[number] = self._verified[number] = True
            return None
        if checksum != int(record["checksum"]):  # sound, but another record: no damage to set aside
            raise self._changed(number)
        self._verified[number] = True
        return content

    def _parsed_frames(self, number: int) -> np.ndarray:
        frames = self._parse(number).frames
        assert frames is not None, "an index holds frame-level records alone"
        return frames[: self.num_frames.item(number)]

    def _parse(self, number: int) -> Video:
        shard, row = self.parts.locate(number)
        record = self.parts[shard].index.records[row]
        place = int(record["offset"]), int(record["number"])
        content, _ = read_data(self._file(shard), place[0], int(record["length"]), place[1])
        return self._parser(shard).parse(content, *place)
