"""The index of a shard: where every record and its frames lie, so that a window is read without the rest.

40 bytes a video plus its id. An index belongs to a shard's content: it carries the checksum of the shard's framing
(every record's length and checksums); each record's own checksum says later that it is the one that was indexed.
`packed` is what is published of it.
"""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.records.framing import OVERHEAD_BYTES, ShardFile, framing_crc
from yt8m_assets.data.records.parsing import RecordParser
from yt8m_assets.data.records.reader import QuarantinedRecord, ReadReport, iterate_records, segments_beyond_end
from yt8m_assets.errors import DataError, SchemaMismatchError
from yt8m_assets.storage.manifest import require_types

if TYPE_CHECKING:
    from yt8m_assets.storage.remote import RemoteStat

VERSION = 4
_MAGIC = b"YT8MIDX1"
NOT_LOCATED = 0xFFFFFFFF
"""`rgb_start` of a record whose encoding is not the canonical one: it is read through protobuf."""
RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("context_start", "<u4"),
        ("context_length", "<u4"),
        ("rgb_start", "<u4"),
        ("audio_start", "<u4"),
        ("num_frames", "<u4"),
        ("number", "<u4"),
        ("checksum", "<u4"),
    ]
)


_WITHOUT = " without record "
_VIDEO_LEVEL = (
    "a video-level record (mean_rgb, mean_audio), where frames are needed; "
    "take the patterns of such shards (2/video/...) out of the recipe"
)


def framing_checksum(uri: str) -> str:
    """`framing-crc32c:` + hex over the framing bytes of every record (see `framing_crc`): what names a shard's content.

    It stands for the content as long as each record matches its own checksum, which reading verifies.
    """
    return f"framing-crc32c:{framing_crc(ShardFile(uri))[1]:08x}"


def framing_of(checksum: str) -> str:
    """The part of a shard's checksum that is of its framing."""
    return checksum.partition(_WITHOUT)[0]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the good records of a shard lie. N of them."""

    uri: str
    """The shard."""
    size: int
    """Its bytes."""
    checksum: str
    """`framing_checksum` of the content that was indexed; with damaged framing, of its sound part. Where records were
    set aside, their numbers follow: whole again, the shard is another one, though its framing stays."""
    feature_sizes: tuple[int, int]
    """Bytes of rgb and audio per frame."""
    num_records: int
    """Records in the file, the damaged ones included."""
    num_labels: int
    """Video-level labels."""
    num_ratings: int
    """Ratings."""
    num_segments_beyond_end: int
    """Ratings of segments that start after their video's end."""
    records: np.ndarray
    """RECORD [N]: where a record and its parts lie, its number in the file, its data's checksum."""
    ids: np.ndarray
    """S11 [N]: video ids."""
    quarantined: tuple[QuarantinedRecord, ...] = ()
    """Records that were set aside."""
    described: "RemoteStat | None" = None
    """What the store said of a shard in a bucket, so that opening it asks nothing; not kept with the index."""

    def __len__(self) -> int:
        return len(self.records)

    def num_frames(self) -> np.ndarray:
        """uint32 [N]: frames of each video."""
        found: np.ndarray = self.records["num_frames"]
        return found

    def load(self) -> "ShardIndex":
        """Itself: it is in memory."""
        return self

    def tell(self, report: ReadReport) -> None:
        """Report what reading the shard met."""
        for record in self.quarantined:
            report.note(record)
        report.num_shards += 1
        report.num_empty_shards += not self.num_records
        report.num_records += len(self.records)
        report.num_segments_beyond_end += self.num_segments_beyond_end

    def to_bytes(self) -> bytes:
        """Magic, JSON header, records, ids, and a crc32c of it all."""
        header = {name: getattr(self, name) for name in _HEADER_FIELDS}
        header |= {"version": VERSION, "num_videos": len(self.records)}
        header["quarantined"] = [asdict(record) for record in self.quarantined]
        text = json.dumps(header, sort_keys=True).encode()
        content = b"".join(
            (_MAGIC, len(text).to_bytes(4, "little"), text, self.records.tobytes(), self.ids.astype("S11").tobytes())
        )
        return content + crc32c(content).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, content: bytes) -> "ShardIndex":
        """Parse and check. Raises DataError when it is damaged or of another version."""
        if content[:8] != _MAGIC or crc32c(content[:-4]).to_bytes(4, "little") != content[-4:]:
            raise DataError("damaged")
        start = 12 + int.from_bytes(content[8:12], "little")
        try:
            header: dict[str, Any] = json.loads(content[12:start])
            count, version = header.pop("num_videos"), header.pop("version")
            if version != VERSION:
                raise DataError(f"of version {version}")
            header["quarantined"] = tuple(QuarantinedRecord(**entry) for entry in header["quarantined"])
            header["feature_sizes"] = tuple(header["feature_sizes"])
            require_types(cls, header)
            ids_start = start + count * RECORD.itemsize
            if ids_start + count * 11 + 4 != len(content):
                raise ValueError(f"{count} videos do not fill it")
            records = np.frombuffer(content, RECORD, count, start)
            return cls(**header, records=records, ids=np.frombuffer(content, "S11", count, ids_start))
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"not an index ({error})") from error


_HEADER_FIELDS = (
    "uri",
    "size",
    "checksum",
    "feature_sizes",
    "num_records",
    "num_labels",
    "num_ratings",
    "num_segments_beyond_end",
)


def build_index(
    uri: str,
    reading: Reading = RELEASED,
    report: ReadReport | None = None,
    described: "RemoteStat | None" = None,
) -> ShardIndex:
    """Read a shard once, checking everything, and note where its records lie. Errors as `read_shard`.

    described: what a listing said of it.
    Raises SchemaMismatchError for a video-level record whatever `reading.on_corrupt` says: only its kind is wrong.
    """
    report = reading.new_report() if report is None else report
    before = len(report.quarantined)
    parser, file = RecordParser(uri, reading.feature_sizes), ShardFile(uri, reading.copies, described)
    rows: list[tuple[int, ...]] = []
    ids: list[str] = []
    labels = ratings = beyond = 0
    for offset, record, view, checksum in iterate_records(uri, on_corrupt=reading.on_corrupt, report=report, file=file):
        try:
            layout, video = parser.examine(view, offset, record)
        except SchemaMismatchError as error:
            if reading.on_corrupt == "raise":
                raise
            report.set_aside(error, len(view) + OVERHEAD_BYTES)
            continue
        if video.frames is None:
            raise SchemaMismatchError(uri, offset, record, _VIDEO_LEVEL)
        beyond += segments_beyond_end(video)
        ids.append(video.video_id)
        labels += len(video.labels)
        ratings += 0 if video.segments is None else len(video.segments)
        places: tuple[int, ...] = (0, 0, NOT_LOCATED, NOT_LOCATED, video.num_frames)
        if layout is not None:
            context_length = layout.context_end - layout.context_start
            places = (layout.context_start, context_length, layout.rgb_start, layout.audio_start, layout.num_frames)
        rows.append((offset, len(view), *places, record, checksum))
    report.num_records += len(rows)
    report.num_segments_beyond_end += beyond
    num_records, crc = framing_crc(file)
    quarantined = tuple(report.quarantined[before:])
    lost = f"{_WITHOUT}{','.join(str(each.record) for each in quarantined)}" if quarantined else ""
    return ShardIndex(
        uri=uri,
        size=file.size,
        checksum=f"framing-crc32c:{crc:08x}{lost}",
        feature_sizes=reading.feature_sizes,
        num_records=num_records,
        num_labels=labels,
        num_ratings=ratings,
        num_segments_beyond_end=beyond,
        records=np.array(rows, RECORD),
        ids=np.array(ids, "S11"),
        quarantined=quarantined,
        described=described,
    )
