"""Reading a shard: strict by default, or setting damaged records aside into a report that is never silent."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from yt8m_assets.data.examples import FEATURE_SIZES
from yt8m_assets.data.framing import (
    FOOTER_BYTES,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    MappedFile,
    check_data,
    header_length,
    local_file,
)
from yt8m_assets.data.parsing import RecordParser
from yt8m_assets.data.video import Video
from yt8m_assets.errors import ConfigError, CorruptShardError, SchemaMismatchError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record that was set aside."""

    uri: str
    """The shard."""
    offset: int
    """Byte at which the record starts."""
    record: int
    """Its number, from 0."""
    reason: str
    """What is wrong with it, and what was lost where that is more than the record."""


@dataclass
class ReadReport:
    """What reading met: pass one report to many reads to gather over shards."""

    max_quarantined: int = 100
    """Records that may be set aside before the read fails."""
    num_shards: int = 0
    """Shards read to their end."""
    num_empty_shards: int = 0
    """Shards without a record."""
    num_records: int = 0
    """Good records."""
    num_segments_beyond_end: int = 0
    """Rated segments that start at or after their video's end (kept, with zero frames)."""
    quiet: bool = False
    """Leave the log alone; whoever reads the report shows it."""
    quarantined: list[QuarantinedRecord] = field(default_factory=list)
    """What was set aside."""

    def set_aside(self, error: CorruptShardError) -> None:
        """Note a damaged record. Raises CorruptShardError when there are too many."""
        self.quarantined.append(QuarantinedRecord(error.uri, error.offset, error.record, error.reason))
        if not self.quiet:
            logger.warning("set aside: %s", error)
        if len(self.quarantined) > self.max_quarantined:
            reason = (
                f"{error.reason}; more than {self.max_quarantined} records are damaged, so the data must be repaired"
            )
            raise CorruptShardError(error.uri, error.offset, error.record, reason) from error


OnCorrupt = Literal["raise", "quarantine"]


def iterate_records(
    uri: str,
    *,
    check_crc: bool = True,
    on_corrupt: OnCorrupt = "raise",
    report: ReadReport | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
    start: tuple[int, int] = (0, 0),
) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (offset, record number, data) of each whole record; `start` = (offset, number) to begin with.

    A wrong checksum of the data loses one record under "quarantine"; a damaged header loses the rest of the shard,
    because nothing says where the next record starts.
    """
    if on_corrupt not in ("raise", "quarantine"):
        raise ConfigError(f"on_corrupt = {on_corrupt!r}: choose 'raise' or 'quarantine'")
    report = ReadReport() if report is None else report
    file = MappedFile(local_file(uri), uri)
    view, (position, record) = file.view, start
    if not file.size:
        if not report.quiet:
            logger.warning("%s: the shard is empty (0 bytes)", uri)
        report.num_empty_shards += 1
    while position < file.size:
        try:
            length = header_length(view, position, record, uri, max_record_bytes)
        except CorruptShardError as error:
            if on_corrupt == "raise":
                raise
            reason = f"{error.reason}; the remaining {file.size - position:,} bytes of the shard are lost with it"
            report.set_aside(CorruptShardError(uri, position, record, reason))
            break
        data_start = position + HEADER_BYTES
        try:
            if check_crc:
                data = check_data(view, position, length, record, uri)
            else:
                data = view[data_start : data_start + length]
        except CorruptShardError as error:
            if on_corrupt == "raise":
                raise
            report.set_aside(error)
        else:
            yield position, record, data
        position = data_start + length + FOOTER_BYTES
        record += 1
        file.release(position)
    report.num_shards += 1


def read_shard(
    uri: str,
    *,
    check_crc: bool = True,
    strict: bool = False,
    on_corrupt: OnCorrupt = "raise",
    report: ReadReport | None = None,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[Video]:
    """Yield the videos of a shard of any release, in order (SPEC section 1).

    uri: local path or gs:// URI. check_crc: verify the checksum of the data (that of the lengths always is).
    strict: a rated segment that starts after its video's end is an error instead of a count in the report.
    on_corrupt: "quarantine" sets damaged records aside into `report` (which caps how many), "raise" stops at the first.
    Raises MissingDataError, CorruptShardError, SchemaMismatchError. Vocabulary bounds are checked by the datasets.
    """
    report = ReadReport() if report is None else report
    parser = RecordParser(uri, feature_sizes)
    records = iterate_records(
        uri, check_crc=check_crc, on_corrupt=on_corrupt, report=report, max_record_bytes=max_record_bytes
    )
    for offset, record, data in records:
        try:
            video = parser.parse(data, offset, record)
            if video.segments is not None:
                report.num_segments_beyond_end += check_segments(video, strict, uri, offset, record)
        except SchemaMismatchError as error:
            if on_corrupt == "raise":
                raise
            report.set_aside(error)
            continue
        report.num_records += 1
        yield video


def check_segments(video: Video, strict: bool, uri: str, offset: int, record: int) -> int:
    """How many ratings start beyond the end of the video. Raises SchemaMismatchError when `strict`."""
    if video.segments is None or video.frames is None:
        return 0
    beyond = video.segments.start_times >= video.num_frames
    if strict and beyond.any():
        start = int(video.segments.start_times[beyond][0])
        reason = f"segment_start_times: {start} lies beyond the video's end ({video.num_frames} frames)"
        raise SchemaMismatchError(uri, offset, record, reason)
    return int(beyond.sum())
