"""What this machine keeps of elsewhere: verified copies of shards, capped in size, for all processes."""

import fcntl
import functools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from yt8m_assets.errors import ConfigError, StorageError
from yt8m_assets.storage import remote
from yt8m_assets.storage.manifest import sha256_text

_MAX_BYTES = 20 * 2**30


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder of copies; the least recently used go when a new one does not fit."""

    path: Path
    """The folder; several processes may share it."""
    max_bytes: int = _MAX_BYTES
    """Size of all copies together."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"cache.max_bytes = {self.max_bytes}: must be at least 1")

    def get(self, uri: str, described: remote.RemoteStat | None = None, *, check: bool = False) -> Path:
        """The local copy of an object, fetched where it is not there yet. A copy evicted while open stays readable.

        described: what a listing said of the object, so that the store is asked nothing where the copy is there; what
        has changed since is a CorruptShardError.
        check: read the copy whole, and fetch it again where it is not what the store holds: it rotted on this disk.
        Raises MissingDataError, TransientError, CorruptShardError (bytes that do not match the store's checksum), and
        StorageError when the cache or the disk is too small.
        """
        described = described or remote.stat(uri)
        if described.size > self.max_bytes:
            raise StorageError(
                f"{uri}: {described.size:,} bytes do not fit the cache {self.path} of {self.max_bytes:,}; enlarge it"
            )
        key = sha256_text(f"{uri}\n{described.size}\n{described.crc32c}\n{described.generation}")[:32]
        target = self.path / f"{key}-{uri.rsplit('/', 1)[-1][-80:]}"
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock(key[:2]):  # one process fetches, the others wait for it
            if check and target.exists() and described.crc32c not in (None, remote.file_crc32c(target)):
                target.unlink()
            if not (target.exists() and target.stat().st_size == described.size):
                for leftover in self.path.glob(f".{target.name}.tmp-*"):
                    leftover.unlink(missing_ok=True)  # of a process that died: we hold the lock
                self._make_room(described.size)
                remote.fetch_to(uri, target, described)
            os.utime(target, ns=(time.time_ns(), time.time_ns()))  # the kernel alone would round to its tick of 4 ms
        return target

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        descriptor = os.open(self.path / f".lock-{name}", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Delete the copies used longest ago until `size` more bytes fit."""
        with self._lock("evict"):
            entries = []
            for entry in self.path.iterdir():
                try:
                    if not entry.name.startswith(".lock-"):
                        entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry))
                except FileNotFoundError:
                    continue
            used = sum(bytes_held for _, bytes_held, _ in entries)
            for _, bytes_held, entry in sorted(entries):
                if used + size <= self.max_bytes:
                    break
                if not entry.name.startswith("."):  # a dot: another process is filling it
                    entry.unlink(missing_ok=True)
                    used -= bytes_held


@dataclass(frozen=True)
class Cache:
    """Folder of what can be made again."""

    path: Path = field(default_factory=lambda: Path.home() / ".cache" / "yt8m")
    """The folder."""
    max_bytes: int | None = None
    """Size of all copies of shards together; None: 20 GiB, and at most half of what is free on the disk now."""

    @property
    def shards(self) -> ShardCache:
        """The copies of shards in buckets."""
        folder = self.path / "shards"
        if self.max_bytes is not None:
            return ShardCache(path=folder, max_bytes=self.max_bytes)
        return ShardCache(path=folder, max_bytes=_bounded(folder))


@functools.cache
def _bounded(folder: Path) -> int:
    """The default size of the copies, decided once a process."""
    folder.mkdir(parents=True, exist_ok=True)
    return max(min(_MAX_BYTES, shutil.disk_usage(folder).free // 2), 1)
