"""Which shards there are, and what is known of each."""

import glob
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import DataError, MissingDataError, other_schema
from yt8m_assets.storage.manifest import require_types

if TYPE_CHECKING:
    from yt8m_assets.storage.remote import RemoteStat

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a listing says of a shard."""

    size: int
    """Bytes."""
    mtime_ns: int | None = None
    """Of a local one, the time of its last change."""
    described: "RemoteStat | None" = None
    """Of one in a bucket, all that the store said."""

    @property
    def version(self) -> str:
        """The size and, in a bucket, the store's crc32c, here the time of the last change: while it stays, so does the
        content (see `identity`)."""
        if self.described is None:
            return f"{self.size} mtime_ns:{self.mtime_ns}"
        crc = self.described.crc32c
        return str(self.size) if crc is None else f"{self.size} crc32c:{crc:08x}"


def list_shards(patterns: str | Sequence[str]) -> dict[str, Listed]:
    """URI -> what a listing says of each shard that patterns (local or gs:// globs, or plain names) match; sorted.

    Local URIs are absolute and normalised; what exists by its literal name is meant literally, a `[` included. One
    listing for each gs:// pattern, however many shards it matches. Raises MissingDataError naming the pattern that
    matches nothing, and what its folder holds.
    """
    found: dict[str, Listed] = {}
    for pattern in dict.fromkeys([patterns] if isinstance(patterns, str) else patterns):
        matches = _list(pattern)
        if not matches:
            raise MissingDataError(f"{pattern}: matches no shard; {_folder_listing(pattern)}")
        found.update(matches)
    return dict(sorted(found.items()))


def expand_patterns(patterns: str | Sequence[str]) -> list[str]:
    """The URIs of `list_shards`."""
    return list(list_shards(patterns))


def _list(pattern: str) -> dict[str, Listed]:
    if "://" in pattern and not pattern.startswith("file://"):
        from yt8m_assets.storage.remote import glob_uris

        return {uri: Listed(size=found.size, described=found) for uri, found in glob_uris(pattern).items()}
    names = map(os.path.abspath, glob.glob(_literal_start(pattern.removeprefix("file://")), recursive=True))
    found = {name: local_stat(name) for name in names}  # one look at each: there may be thousands, far away
    return {
        name: Listed(size=seen.st_size, mtime_ns=seen.st_mtime_ns)
        for name, seen in found.items()
        if stat.S_ISREG(seen.st_mode)
    }


def _literal_start(pattern: str) -> str:
    """The pattern with its longest part that exists by that very name escaped, so that `glob` takes it literally."""
    path = Path(pattern)
    literal = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    return os.path.join(glob.escape(str(literal)), *path.parts[len(literal.parts) :])


def shard_names(uris: Iterable[str]) -> dict[str, str]:
    """URI -> what identifies a shard wherever the data lie: its file name, with as many folders as tell it from others.

    Sorted by that name. Copying the data to another disk, folder or bucket changes no name, and so nothing made of it.
    """
    parts = {uri: [part for part in uri.split("/") if part] for uri in uris}
    names: dict[str, str] = {}
    pending, depth = list(parts), 1
    while pending:
        grouped: dict[str, list[str]] = {}
        for uri in pending:
            grouped.setdefault("/".join(parts[uri][-depth:]), []).append(uri)
        whole = {uri for uri in pending if depth >= len(parts[uri])}
        names |= {found[0]: name for name, found in grouped.items() if len(found) == 1}
        names |= {uri: uri for uri in whole - set(names)}
        pending = [uri for uri in pending if uri not in names]
        depth += 1
    return dict(sorted(names.items(), key=lambda item: (item[1], item[0])))


def _folder_listing(pattern: str) -> str:
    if "://" in pattern and not pattern.startswith("file://"):
        from yt8m_assets.storage.remote import list_folder

        folder, names = pattern.rsplit("/", 1)[0], list_folder(pattern.rsplit("/", 1)[0])
    else:
        path = Path(pattern.removeprefix("file://")).parent
        while not path.is_dir() and path != path.parent:
            path = path.parent
        folder, names = str(path), sorted(entry.name for entry in path.iterdir())
    if not names:
        return f"{folder} is empty or does not exist"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{folder} holds {', '.join(names[:5])}{more}"


def look_at(uri: str) -> Listed:
    """What a listing would say of one shard. Raises MissingDataError where it does not exist."""
    if "://" in uri and not uri.startswith("file://"):
        from yt8m_assets.storage import remote

        found = remote.stat(uri)
        return Listed(size=found.size, described=found)
    seen = local_stat(uri)
    return Listed(size=seen.st_size, mtime_ns=seen.st_mtime_ns)


def local_stat(uri: str) -> os.stat_result:
    """Size and times of a local file. Raises MissingDataError naming what its folder holds."""
    path = uri.removeprefix("file://")
    try:
        return os.stat(path)
    except OSError as error:
        what = "it is a link to a file that" if os.path.islink(path) else "it"
        raise MissingDataError(
            f"{uri}: no such shard: {what} cannot be found or read ({error.strerror}); {_folder_listing(uri)}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What is known of one shard."""

    name: str
    """What identifies it among the shards of its asset (see `shard_names`)."""
    uri: str = ""
    """Local path or gs:// URI where it lies now; never published, for data may be moved."""
    described: "RemoteStat | None" = None
    """What the listing said of one in a bucket; never published."""
    size: int
    """Bytes."""
    checksum: str
    """Checksum of the content (see `index.framing_checksum`)."""
    num_records: int
    """Records in the file, the damaged ones included."""
    num_videos: int
    """Good records."""
    num_frames: int
    """Frames of all videos."""
    num_labels: int = 0
    """Video-level labels."""
    num_ratings: int = 0
    """Rated (segment, class) pairs."""
    num_segments_beyond_end: int = 0
    """Ratings of segments that start after their video's end."""
    num_held_out: int = 0
    """Videos that are kept from every training."""
    held_out: bool = False
    """Whether they are all of the shard's videos."""


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """The shards of a split: the one list that hold-out and training share."""

    shards: tuple[ShardInfo, ...]
    """Every shard, sorted by name."""
    quarantined: tuple[dict[str, Any], ...] = ()
    """What was set aside: shard (its name), offset, record, reason, num_bytes, num_records (maybe estimated)."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, as JSON values."""

    def located(self, uris: Mapping[str, str], listing: Mapping[str, Listed]) -> "ShardManifest":
        """The same with the places where the shards lie; `uris`: name -> URI of every one, `listing`: URI -> Listed."""
        places = ((shard, uris[shard.name]) for shard in self.shards)
        found = (replace(shard, uri=uri, described=listing[uri].described) for shard, uri in places)
        return replace(self, shards=tuple(found))

    def uris(self, held_out: bool | None = None) -> list[str]:
        """URIs of all shards, or of those on one side of the hold-out."""
        return [shard.uri for shard in self.shards if held_out is None or shard.held_out == held_out]

    def total(self, name: str, held_out: bool | None = None) -> int:
        """Sum of a count (`num_videos`, `size`, ...) over the shards."""
        return sum(getattr(shard, name) for shard in self.shards if held_out is None or shard.held_out == held_out)

    def to_json(self) -> str:
        """Text with sorted keys: equal manifests give equal text."""
        content = {
            "schema": SCHEMA,
            "shards": [
                {name: value for name, value in asdict(shard).items() if name not in ("uri", "described")}
                for shard in self.shards
            ],
            "quarantined": list(self.quarantined),
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, name: str = "shards.json") -> "ShardManifest":
        """Parse and check. Raises DataError naming the file."""
        try:
            content = json.loads(text)
            if content["schema"] != SCHEMA:
                raise DataError(other_schema(name, content["schema"], SCHEMA, "redo it"))
            for entry in content["shards"]:
                require_types(ShardInfo, entry)
            require_types(cls, {"notes": content["notes"]})
            shards = tuple(ShardInfo(**entry) for entry in content["shards"])
            return cls(shards=shards, quarantined=tuple(content["quarantined"]), notes=content["notes"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name}: not a shard manifest ({error}); redo the artifact") from error

    @classmethod
    def read(cls, path: Path) -> "ShardManifest":
        """The manifest in a file."""
        return cls.from_json(path.read_bytes(), str(path))
