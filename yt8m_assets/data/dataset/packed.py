"""The published index: rows of 34 bytes a video in a few files, one shard's part found by its place.

It lies in the folder `index` of the artifact that lists the shards, whose list says the rest: names, checksums, counts
and what was set aside. Nothing in it names a place, and it does not enter the digest, for it follows from the shards.
It is read, not mapped, a shard at a time: a process holds what it uses.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.data.dataset.index import NOT_LOCATED, RECORD, ShardIndex
from yt8m_assets.data.dataset.shards import ShardInfo, ShardManifest
from yt8m_assets.data.records.framing import OVERHEAD_BYTES
from yt8m_assets.data.records.reader import QuarantinedRecord, ReadReport
from yt8m_assets.errors import DataError
from yt8m_assets.storage.manifest import INDEX_FOLDER, safe_join

if TYPE_CHECKING:
    from yt8m_assets.storage.remote import RemoteStat

INDEX_FILE = f"{INDEX_FOLDER}/rows-v1.json"
"""What the files of rows hold. Another version has another name: an artifact without it is made again."""
FILE_BYTES = 8 * 2**20
"""A file of rows holds whole shards, and no more than this where several shards fit."""
ROW = np.dtype(
    [
        ("id", "S11"),
        ("num_frames", "<u4"),
        ("length", "<u4"),
        ("checksum", "<u4"),
        ("rgb_start", "<u4"),
        ("audio_start", "<u4"),
        ("context_length", "<u2"),
        ("context_start", "u1"),
    ]
)
_HELD_OUT = np.uint32(1 << 31)
"""Bit of `num_frames`: the video is kept from every training."""
_SAME = ("num_frames", "length", "checksum", "rgb_start", "audio_start", "context_length", "context_start")


def pack(index: ShardIndex, held_out: np.ndarray) -> np.ndarray:
    """ROW [N] of an indexed shard; held_out: bool [N]. A context too large or too far for its column counts as not
    located: such a record is read through protobuf."""
    records, rows = index.records, np.empty(len(index.records), ROW)
    near = (records["context_length"] < 2**16) & (records["context_start"] < 2**8)
    rows["id"] = index.ids
    for name in _SAME:
        rows[name] = np.where(near, records[name], 0) if name.startswith("context") else records[name]
    rows["rgb_start"][~near] = rows["audio_start"][~near] = NOT_LOCATED
    rows["num_frames"][held_out] |= _HELD_OUT
    return rows


def unpack(rows: np.ndarray, quarantined: Iterable[QuarantinedRecord] = ()) -> np.ndarray:
    """RECORD [N] of a shard's rows: records follow each other, but for those that were set aside."""
    records = np.empty(len(rows), RECORD)
    for name in _SAME:
        records[name] = rows[name]
    records["num_frames"] &= ~_HELD_OUT
    sizes = rows["length"].astype(np.int64) + OVERHEAD_BYTES
    offset, number = np.cumsum(sizes) - sizes, np.arange(len(rows))
    for lost in sorted(quarantined, key=lambda each: each.record):
        behind = number >= lost.record
        number[behind] += 1
        offset[behind] += lost.num_bytes
    records["offset"], records["number"] = offset, number
    return records


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One of the folds into which videos fall by their ids, or all the others: the same whatever shards they lie in."""

    number: int
    """Which, from 0."""
    count: int
    """Of how many."""
    inside: bool
    """Whether its own videos are meant, or those of the others."""

    def means(self, ids: np.ndarray) -> np.ndarray:
        """bool [N]: which of some videos (S11 [N]) are meant."""
        numbers = np.array([zlib.crc32(name) % self.count for name in ids.tolist()], np.int64)
        return (numbers == self.number) == self.inside


@dataclass(frozen=True, kw_only=True)
class PackedShard:
    """A shard as its published index knows it, where it lies now; small, and sent to other processes as it is."""

    uri: str
    """Local path or gs:// URI."""
    size: int
    """Its bytes."""
    checksum: str
    """Checksum of its content (see `ShardInfo`)."""
    feature_sizes: tuple[int, int]
    """Bytes of rgb and audio per frame."""
    path: Path
    """The file of rows."""
    first: int
    """Byte of that file at which its rows start."""
    num_rows: int
    """Its good records."""
    num_records: int
    """Its records, the damaged ones included."""
    num_held_out: int
    """Videos of it that are kept from every training."""
    num_segments_beyond_end: int = 0
    """Ratings of segments that start after their video's end."""
    quarantined: tuple[QuarantinedRecord, ...] = ()
    """Records that were set aside when it was indexed."""
    held_out: bool | None = None
    """Which videos are meant: the held-out ones, the others, or all."""
    fold: Fold | None = None
    """Of these, those of a fold alone; None: all of them."""
    described: "RemoteStat | None" = None
    """What the listing said of it, so that opening it asks the store nothing."""

    def __len__(self) -> int:
        if self.fold is not None:
            return len(self.rows())
        if self.held_out is None:
            return self.num_rows
        return self.num_held_out if self.held_out else self.num_rows - self.num_held_out

    def rows(self) -> np.ndarray:
        """ROW [len]: those of the videos that are meant. Raises DataError where the file ends too early."""
        rows = self._all_rows()
        meant = self._meant(rows)
        return rows if meant is None else rows[meant]

    def _meant(self, rows: np.ndarray) -> np.ndarray | None:
        """bool [num_rows]; None: all."""
        meant = None if self.held_out is None else ((rows["num_frames"] & _HELD_OUT) > 0) == self.held_out
        if self.fold is None:
            return meant
        return self.fold.means(rows["id"]) & (True if meant is None else meant)

    def _all_rows(self) -> np.ndarray:
        with self.path.open("rb") as file:
            content = os.pread(file.fileno(), self.num_rows * ROW.itemsize, self.first)
        if len(content) < self.num_rows * ROW.itemsize:
            raise DataError(f"{self.path}: ends before the index of {self.uri}; fetch or materialise the shards again")
        return np.frombuffer(content, ROW)

    def num_frames(self) -> np.ndarray:
        """uint32 [len]: frames of each video."""
        return self.rows()["num_frames"] & ~_HELD_OUT

    def load(self) -> ShardIndex:
        """The index of the videos that are meant."""
        rows = self._all_rows()
        records = unpack(rows, self.quarantined)
        meant = self._meant(rows)
        if meant is not None:
            rows, records = rows[meant], records[meant]
        return ShardIndex(
            uri=self.uri,
            size=self.size,
            checksum=self.checksum,
            feature_sizes=self.feature_sizes,
            num_records=self.num_records,
            num_labels=0,
            num_ratings=0,
            num_segments_beyond_end=self.num_segments_beyond_end,
            records=records,
            ids=np.ascontiguousarray(rows["id"]),
            quarantined=self.quarantined,
            described=self.described,
        )

    def tell(self, report: ReadReport) -> None:
        """Report what reading the shard met when it was indexed."""
        for record in self.quarantined:
            report.note(record)
        report.num_shards += 1
        report.num_empty_shards += not self.num_records
        report.num_records += len(self)
        report.num_segments_beyond_end += self.num_segments_beyond_end


def write_index(folder: Path, indices: Sequence[ShardIndex], held_out: Mapping[str, np.ndarray]) -> None:
    """Write INDEX_FILE and its files of rows below an artifact's folder; the shards in the order of their list.

    held_out: URI -> bool [N], of a shard's videos.
    """
    (folder / INDEX_FOLDER).mkdir()
    files: list[dict[str, Any]] = []
    pending: list[bytes] = []

    def close_file() -> None:
        name = f"{len(files):04d}.rows"
        (folder / INDEX_FOLDER / name).write_bytes(b"".join(pending))
        files.append({"name": name, "num_shards": len(pending)})
        pending.clear()

    for index in indices:
        rows = pack(index, held_out[index.uri])
        assert (unpack(rows, index.quarantined)["offset"] == index.records["offset"]).all(), index.uri
        if pending and sum(map(len, pending)) + rows.nbytes > FILE_BYTES:
            close_file()
        pending.append(rows.tobytes())
    if pending:
        close_file()
    content = {"feature_sizes": list(indices[0].feature_sizes) if indices else [], "files": files}
    (folder / INDEX_FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True, kw_only=True)
class PackedIndex:
    """Where an artifact's list of shards has their rows."""

    feature_sizes: tuple[int, int]
    """Bytes of rgb and audio per frame that the shards were indexed with."""
    places: Mapping[str, tuple[str, int]]
    """Name of a shard -> name of the file below the artifact, first byte in it."""

    @classmethod
    def read(cls, path: Path, shards: ShardManifest) -> "PackedIndex":
        """Parse INDEX_FILE beside the list that it belongs to. Raises DataError."""
        try:
            content = json.loads(path.read_text())
            pending = iter(shards.shards)
            places: dict[str, tuple[str, int]] = {}
            for entry in content["files"]:
                first = 0
                for _ in range(entry["num_shards"]):
                    shard = next(pending)
                    places[shard.name] = (safe_join(INDEX_FOLDER, entry["name"]), first)
                    first += shard.num_videos * ROW.itemsize
            if len(places) < len(shards.shards):
                raise ValueError(f"{len(places)} shards of {len(shards.shards)}")
            rgb, audio = map(int, content["feature_sizes"] or (0, 0))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, StopIteration, RecursionError) as error:
            raise DataError(f"{path}: not the index of this list of shards ({error}); redo the artifact") from error
        return cls(feature_sizes=(rgb, audio), places=places)

    def shard(
        self,
        folder: Path,
        shard: ShardInfo,
        quarantined: Iterable[Mapping[str, Any]] = (),
        held_out: bool | None = None,
    ) -> PackedShard:
        """One of the shards, its rows below `folder`; quarantined: the list's entries of it."""
        name, first = self.places[shard.name]
        return PackedShard(
            uri=shard.uri,
            size=shard.size,
            checksum=shard.checksum,
            feature_sizes=self.feature_sizes,
            path=folder / name,
            first=first,
            num_rows=shard.num_videos,
            num_records=shard.num_records,
            num_held_out=shard.num_held_out,
            num_segments_beyond_end=shard.num_segments_beyond_end,
            quarantined=tuple(_lost(entry, shard.uri) for entry in quarantined),
            held_out=held_out,
            described=shard.described,
        )


def indexed_again(shard: PackedShard, info: ShardInfo, uri: str, described: "RemoteStat | None") -> ShardIndex:
    """The whole index of a shard that an earlier list knows, which now lies at `uri`: what indexing it would give."""
    return replace(
        replace(shard, held_out=None).load(),
        uri=uri,
        described=described,
        num_labels=info.num_labels,
        num_ratings=info.num_ratings,
        quarantined=tuple(replace(record, uri=uri) for record in shard.quarantined),
    )


def _lost(entry: Mapping[str, Any], uri: str) -> QuarantinedRecord:
    return QuarantinedRecord(uri=uri, **{name: value for name, value in entry.items() if name != "shard"})
