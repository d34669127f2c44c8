"""What this machine keeps of elsewhere: verified copies of shards, capped in size, for all processes."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from yt8m_assets.errors import ConfigError, StorageError, Yt8mError
from yt8m_assets.storage import remote
from yt8m_assets.storage.files import free_space_error, is_write_error
from yt8m_assets.storage.manifest import sha256_text
from yt8m_assets.storage.ranges import Stop, Stopped

CACHE = "YT8M_CACHE"
"""Environment variable with the folder of the cache."""
CACHE_GB = "YT8M_CACHE_GB"
"""Environment variable with the size of all copies of shards."""
DISK_SHARE = 0.5
"""Of the whole disk, what copies of shards take unless told otherwise."""
FREE_SHARE = 0.05
"""Of the whole disk, what copies of shards leave free then, whatever else fills it."""
_WAIT_SECONDS = 0.1


class Copy(NamedTuple):
    """A copy of an object, open for reading."""

    descriptor: int
    path: Path
    """Names the object and its version, whenever it was fetched."""
    size: int


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder of copies; the least recently used go when a new one does not fit.

    What goes gives its bytes back at once, though a reader may have it open: `max_bytes` bounds what lies on the disk.
    The reader finds the file short, and opens the object again (`framing.ShardFile`).
    """

    path: Path
    """The folder; several processes may share it."""
    max_bytes: int
    """Size of all copies together, those that are being fetched included."""
    keep_free: int = 0
    """Bytes of the disk that are left free where copies can go for it."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"cache.max_bytes = {self.max_bytes}: must be at least 1")

    def get(self, uri: str, described: remote.RemoteStat | None = None, stop: Stop | None = None) -> Path:
        """The local copy of an object, fetched where it is not there yet. It may go again: see `open`.

        described: what a listing said of the object, so that the store is asked nothing where the copy is there; what
        has changed since is a CorruptShardError. stop: set it to end a download; then `ranges.Stopped` is raised.
        Raises MissingDataError, TransientError, CorruptShardError (bytes that do not match the store's checksum), and
        StorageError when the cache or the disk is too small.
        """
        return self._get(uri, described or remote.stat(uri), check=False, stop=stop)

    def open(self, uri: str, described: remote.RemoteStat | None = None, *, check: bool = False) -> Copy:
        """The copy, open; the caller closes it. Raises as `get`.

        check: read the copy whole, and fetch it again where it is not what the store holds: it rotted on this disk.
        """
        described = described or remote.stat(uri)
        while True:
            path = self._get(uri, described, check=check)
            with suppress(FileNotFoundError):  # another process has just made room
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(descriptor).st_size == described.size:
                    return Copy(descriptor, path, described.size)
                os.close(descriptor)

    def _get(self, uri: str, described: remote.RemoteStat, check: bool, stop: Stop | None = None) -> Path:
        if described.size > self.max_bytes:
            raise StorageError(
                f"{uri}: {described.size:,} bytes do not fit the cache {self.path} of {self.max_bytes:,}; "
                f"enlarge it ({CACHE_GB})"
            )
        key = sha256_text(f"{uri}\n{described.size}\n{described.crc32c}\n{described.generation}")[:32]
        target = self.path / f"{key}-{uri.rsplit('/', 1)[-1][-80:]}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock(_lock_of(target.name)):  # one process fetches, the others wait for it
                if not _is_sound(target, described, check):
                    self._fetch(uri, target, described, stop)
                touch(target)
        except OSError as error:
            if isinstance(error, Yt8mError) or not is_write_error(error, self.path):
                raise
            raise free_space_error(target, error, described.size) from error
        return target

    def _fetch(self, uri: str, target: Path, described: remote.RemoteStat, stop: Stop | None) -> None:
        """Download beside the target, whose lock is held; a copy that a crash of the machine spoils has a checksum."""
        filling = target.with_name(f".{target.name}.tmp")
        try:
            while True:
                try:
                    self._reserve(filling, described.size, stop)
                    remote.fetch_to(uri, filling, described, stop)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    with self._lock("evict"):
                        if not self._evict(max(described.size, 1)):
                            raise
            with self._lock("evict"):  # else who counts meanwhile may see neither name
                os.replace(filling, target)
        finally:
            filling.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Hold a lock of all processes. Raises BlockingIOError where it is not to be waited for."""
        descriptor = os.open(self.path / f".lock-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(descriptor)

    def _reserve(self, filling: Path, size: int, stop: Stop | None) -> None:
        """Make the file of a download, which counts from then on. Waits where other downloads take all there is."""
        while True:
            with self._lock("evict"):
                if self._make_room(size):
                    with filling.open("wb") as file:
                        file.truncate(size)
                    return
            if (stop or Stop()).wait(_WAIT_SECONDS):
                raise Stopped

    def _make_room(self, size: int) -> bool:
        """Delete the copies used longest ago until `size` more bytes fit the cache, and the disk if that can be.

        Whether they fit the cache.
        """
        used = sum(bytes_held for _, bytes_held, _ in self._entries())
        missing = wanted = used + size - self.max_bytes
        if self.keep_free:
            wanted = max(missing, self.keep_free + size - shutil.disk_usage(self.path).free)
        return missing <= max(self._evict(wanted) if wanted > 0 else 0, 0)

    def _evict(self, size: int) -> int:
        """Delete the copies used longest ago, `size` bytes if there are as many; how many went."""
        gone = 0
        for _, bytes_held, entry in sorted(self._entries()):
            if gone >= size:
                break
            if self._remove(entry):
                gone += bytes_held
        return gone

    def _remove(self, entry: Path) -> bool:
        """Delete a copy, or what is left of a download whose process died; whether it went."""
        try:
            if entry.name.startswith("."):
                with self._lock(_lock_of(entry.name[1:]), wait=False):
                    entry.unlink()
                return True
            descriptor = os.open(entry, os.O_WRONLY | os.O_CLOEXEC)
        except (BlockingIOError, FileNotFoundError):
            return False
        try:
            entry.unlink(missing_ok=True)  # first: who opens it now finds none, who has it finds the end
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
        return True

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, bytes and path of what lies in the folder, downloads on their way included."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.startswith(".lock-"):
                    with suppress(FileNotFoundError):
                        seen = entry.stat()
                        found.append((seen.st_mtime_ns, seen.st_size, Path(entry.path)))
        return found


def _is_sound(copy: Path, described: remote.RemoteStat, check: bool) -> bool:
    """Whether a copy is there, of the right size, and if `check` with the right content."""
    try:
        whole = copy.stat().st_size == described.size
        return whole and not (check and described.crc32c not in (None, remote.file_crc32c(copy)))
    except FileNotFoundError:
        return False


def touch(copy: Path) -> None:
    """Note that a copy is used now, unless it has just made room; the kernel alone would round to its tick of 4 ms."""
    with suppress(FileNotFoundError):
        os.utime(copy, ns=(time.time_ns(), time.time_ns()))


def _lock_of(name: str) -> str:
    """Of a copy: a thousand locks serve all, so that their files do not become more and more."""
    return name[:3]


def default_folder() -> Path:
    """The folder of this machine's cache where no state folder is known: YT8M_CACHE, or below the home."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "yt8m")


@dataclass(frozen=True)
class Cache:
    """Folder of what can be made again."""

    path: Path = field(default_factory=default_folder)
    """The folder."""
    max_bytes: int | None = None
    """Size of all copies of shards together; None: half of the whole disk, of which a twentieth is left free."""

    @property
    def shards(self) -> ShardCache:
        """The copies of shards in buckets."""
        folder = self.path / "shards"
        if self.max_bytes is not None:
            return ShardCache(path=folder, max_bytes=self.max_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        whole = shutil.disk_usage(folder).total
        share, free = max(int(whole * DISK_SHARE), 1), int(whole * FREE_SHARE)
        return ShardCache(path=folder, max_bytes=share, keep_free=free)
