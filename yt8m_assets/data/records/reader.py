"""Reading a shard: strict by default, or setting damaged records aside into a report that is never silent."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.framing import (
    OVERHEAD_BYTES,
    ShardFile,
    read_data,
    walk_headers,
)
from yt8m_assets.data.records.parsing import RecordParser
from yt8m_assets.data.records.video import Video
from yt8m_assets.errors import ConfigError, CorruptShardError, SchemaMismatchError

logger = logging.getLogger(__name__)
TYPICAL_RECORD_BYTES = 230_000
"""A released frame-level record (about 200 s): what estimates go by where no record of a shard can be read."""


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record that was set aside, or the rest of a shard after a damaged header."""

    uri: str
    """The shard."""
    offset: int
    """Byte at which the record starts."""
    record: int
    """Its number, from 0."""
    reason: str
    """What is wrong with it, and what was lost where that is more than the record."""
    num_bytes: int = 0
    """Bytes that are lost with it, its framing included; 0: not known."""
    num_records: int = 1
    """Records that are lost with it: for the rest of a shard an estimate from the mean size of those before."""


@dataclass
class ReadReport:
    """What reading met: pass one report to many reads to gather over shards."""

    max_quarantined: int = 100
    """Records that may be lost before the read fails, the estimated ones included."""
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

    @property
    def num_lost(self) -> int:
        """Records that were lost: those set aside, and an estimate where the rest of a shard was."""
        return sum(record.num_records for record in self.quarantined)

    def set_aside(self, error: CorruptShardError, num_bytes: int = 0, num_records: int = 1) -> None:
        """Note a damaged record. Raises CorruptShardError when there are too many."""
        self.note(QuarantinedRecord(error.uri, error.offset, error.record, error.reason, num_bytes, num_records))

    def note(self, record: QuarantinedRecord) -> None:
        """As `set_aside`, of a record that was set aside before."""
        self.quarantined.append(record)
        error = CorruptShardError(record.uri, record.offset, record.record, record.reason)
        if not self.quiet:
            logger.warning("set aside: %s", error)
        if self.num_lost > self.max_quarantined:
            reason = (
                f"{error.reason}; more than {self.max_quarantined} records are damaged, so the data must be repaired "
                "(or data.max_quarantined raised)"
            )
            raise CorruptShardError(error.uri, error.offset, error.record, reason)


OnCorrupt = Literal["raise", "quarantine"]


def iterate_records(
    uri: str, *, on_corrupt: OnCorrupt = "raise", report: ReadReport | None = None, file: ShardFile | None = None
) -> Iterator[tuple[int, int, memoryview, int]]:
    """Yield offset, number, data and checksum of each whole record; `file`: the shard where it is open already.

    A wrong checksum of the data loses one record under "quarantine"; a damaged header loses the rest of the shard,
    because nothing says where the next record starts.
    """
    if on_corrupt not in ("raise", "quarantine"):
        raise ConfigError(f"on_corrupt = {on_corrupt!r}: choose 'raise' or 'quarantine'")
    report = ReadReport() if report is None else report
    file = file or ShardFile(uri)
    if not file.size:
        if not report.quiet:
            logger.warning("%s: the shard is empty (0 bytes)", uri)
        report.num_empty_shards += 1
    headers = walk_headers(file)
    while True:
        try:
            header = next(headers, None)
        except CorruptShardError as error:
            if on_corrupt == "raise":
                raise
            _set_rest_aside(error, file.size, report)
            break
        if header is None:
            break
        position, record, length = header
        try:
            data, checksum = read_data(file, position, length, record)
        except CorruptShardError as error:
            if on_corrupt == "raise":
                raise
            report.set_aside(error, length + OVERHEAD_BYTES)
        else:
            yield position, record, data, checksum
    report.num_shards += 1


def _set_rest_aside(error: CorruptShardError, size: int, report: ReadReport) -> None:
    """Lose what lies behind a damaged header, in a shard of `size` bytes."""
    rest, record = size - error.offset, error.record
    lost = max(1, round(rest * record / error.offset) if record else round(rest / TYPICAL_RECORD_BYTES))
    about = f", about {lost:,} records" if lost > 1 else ""
    reason = f"{error.reason}; the remaining {rest:,} bytes of the shard are lost with it{about}"
    report.set_aside(CorruptShardError(error.uri, error.offset, record, reason), rest, lost)


def read_shard(
    uri: str,
    *,
    strict: bool = False,
    on_corrupt: OnCorrupt = "raise",
    report: ReadReport | None = None,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
) -> Iterator[Video]:
    """Yield the videos of a shard of any release, in order (SPEC section 1).

    uri: local path or gs:// URI. strict: a rated segment that starts after its video's end is an error instead of a
    count in the report. on_corrupt: "quarantine" sets damaged records aside into `report` (which caps how many),
    "raise" stops at the first. feature_sizes: bytes of rgb and audio per frame.
    Raises MissingDataError, CorruptShardError, SchemaMismatchError. Vocabulary bounds are checked by the datasets.
    """
    report = ReadReport() if report is None else report
    parser = RecordParser(uri, feature_sizes)
    for offset, record, data, _ in iterate_records(uri, on_corrupt=on_corrupt, report=report):
        try:
            video = parser.parse(data, offset, record)
            if strict:
                _require_segments_inside(video, uri, offset, record)
            report.num_segments_beyond_end += segments_beyond_end(video)
        except SchemaMismatchError as error:
            if on_corrupt == "raise":
                raise
            report.set_aside(error, len(data) + OVERHEAD_BYTES)
            continue
        report.num_records += 1
        yield video


def segments_beyond_end(video: Video) -> int:
    """How many ratings start beyond the end of the video."""
    if video.segments is None or video.frames is None:
        return 0
    return int((video.segments.start_times >= video.num_frames).sum())


def _require_segments_inside(video: Video, uri: str, offset: int, record: int) -> None:
    if segments_beyond_end(video) and video.segments is not None:
        start = int(video.segments.start_times[video.segments.start_times >= video.num_frames][0])
        reason = f"segment_start_times: {start} lies beyond the video's end ({video.num_frames} frames)"
        raise SchemaMismatchError(uri, offset, record, reason)
