"""The sidecar index of a shard: where every record and its frames lie, so that a window is read without the rest.

40 bytes a video plus its id. An index belongs to a shard's content: it carries the checksum of the shard's framing
(every record's length and checksums), and is rebuilt when that differs; each record's own checksum says later that it
is the one that was indexed.
"""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from crc32c import crc32c

from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.dataset.shards import local_stat
from yt8m_assets.data.records.framing import OVERHEAD_BYTES, ShardFile, framing_crc
from yt8m_assets.data.records.parsing import RecordParser
from yt8m_assets.data.records.reader import QuarantinedRecord, ReadReport, iterate_records, segments_beyond_end
from yt8m_assets.errors import SchemaMismatchError
from yt8m_assets.storage import atomic_write, sha256_text
from yt8m_assets.storage.files import is_settled

logger = logging.getLogger(__name__)
VERSION = 3
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
    stored_mtime_ns: int | None = None
    """Of a local shard, when it was changed last: that the index fits is seen without reading the shard."""
    stored_crc32c: int | None = None
    """Of a shard in a bucket, the store's checksum: that the index fits is seen without fetching the shard."""

    @property
    def video_ids(self) -> list[str]:
        """The ids as text."""
        return [name.decode() for name in self.ids.tolist()]

    def tell(self, report: ReadReport) -> None:
        """Report what reading the shard met."""
        for record in self.quarantined:
            report.note(record)
        report.num_shards += 1
        report.num_empty_shards += not self.num_records
        report.num_records += len(self.records)
        report.num_segments_beyond_end += self.num_segments_beyond_end

    def without(self, video_ids: np.ndarray) -> "ShardIndex":
        """The index without some videos (S11 [n]); its counts stay those of the shard."""
        kept = ~np.isin(self.ids, video_ids)
        return self if kept.all() else replace(self, records=self.records[kept], ids=self.ids[kept])

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
        """Parse and check. Raises ValueError when it is damaged or of another version."""
        if content[:8] != _MAGIC or crc32c(content[:-4]).to_bytes(4, "little") != content[-4:]:
            raise ValueError("damaged")
        start = 12 + int.from_bytes(content[8:12], "little")
        header: dict[str, Any] = json.loads(content[12:start])
        count, version = header.pop("num_videos"), header.pop("version")
        if version != VERSION:
            raise ValueError(f"of version {version}")
        ids_start = start + count * RECORD.itemsize
        header["quarantined"] = tuple(QuarantinedRecord(**entry) for entry in header["quarantined"])
        header["feature_sizes"] = tuple(header["feature_sizes"])
        records = np.frombuffer(content, RECORD, count, start)
        return cls(**header, records=records, ids=np.frombuffer(content, "S11", count, ids_start))


_HEADER_FIELDS = (
    "uri",
    "size",
    "checksum",
    "feature_sizes",
    "num_records",
    "num_labels",
    "num_ratings",
    "num_segments_beyond_end",
    "stored_mtime_ns",
    "stored_crc32c",
)


def build_index(uri: str, reading: Reading = RELEASED, report: ReadReport | None = None) -> ShardIndex:
    """Read a shard once, checking everything, and note where its records lie. Errors as `read_shard`.

    Raises SchemaMismatchError for a video-level record whatever `reading.on_corrupt` says: only its kind is wrong.
    """
    report = reading.new_report() if report is None else report
    before = len(report.quarantined)
    parser, file = RecordParser(uri, reading.feature_sizes), ShardFile(uri, reading.copies)
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
    )


def index_path(uri: str, cache_path: Path) -> Path:
    """Where the index of a shard lies in a cache folder."""
    name = uri.rsplit("/", 1)[-1]
    return cache_path / f"{name}-{sha256_text(uri)[:16]}.index"


def load_index(uri: str, reading: Reading = RELEASED, report: ReadReport | None = None) -> ShardIndex:
    """The index of a shard: from the index folder while it fits the shard's content, else built (and kept there).

    An index that lists damaged records is used under "quarantine" only (and reported again); under "raise" the shard
    is read anew, which raises.
    """
    report = reading.new_report() if report is None else report
    if reading.index_folder is None:
        return build_index(uri, reading, report)
    path = index_path(uri, reading.index_folder)
    try:
        index = ShardIndex.from_bytes(path.read_bytes())
    except FileNotFoundError:
        index = None
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the index is %s; it is built again", path, error)
        index = None
    if index is not None and _fits(index, uri, reading):
        index.tell(report)
        return index
    stored = stored_version(uri)  # first: a shard that is replaced while it is read does not fit the next time
    changed_ns = settled_mtime_ns(uri) if stored is None else None
    index = build_index(uri, reading, report)
    index = replace(index, stored_crc32c=stored[1] if stored else None, stored_mtime_ns=changed_ns)
    with atomic_write(path) as temporary:
        temporary.write_bytes(index.to_bytes())
    return index


def stored_version(uri: str) -> tuple[int, int | None] | None:
    """Size and checksum of a shard in a bucket as the store has them; None for a local file."""
    if "://" not in uri or uri.startswith("file://"):
        return None
    from yt8m_assets.storage.remote import stat

    described = stat(uri)
    return described.size, described.crc32c


def settled_mtime_ns(uri: str) -> int | None:
    """When a local shard was changed last; None just after that, when it may change again without another time."""
    changed = local_stat(uri).st_mtime_ns
    return changed if is_settled(changed) else None


def _fits(index: ShardIndex, uri: str, reading: Reading) -> bool:
    if index.uri != uri or index.feature_sizes != tuple(reading.feature_sizes):
        return False
    if index.quarantined and reading.on_corrupt == "raise":
        return False
    if index.stored_crc32c is not None:
        return stored_version(uri) == (index.size, index.stored_crc32c)
    if index.stored_mtime_ns is not None:
        found = local_stat(uri)
        if (found.st_size, found.st_mtime_ns) == (index.size, index.stored_mtime_ns):
            return True
    if index.quarantined:
        return False  # a record that was repaired has the framing that the damaged one had
    file = ShardFile(uri, reading.copies)
    return index.size == file.size and index.checksum == f"framing-crc32c:{framing_crc(file)[1]:08x}"
