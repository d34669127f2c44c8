"""Objects in a bucket (gs://) through fsspec and gcsfs, with our own retries, deadlines and checksums.

gcsfs alone does not retry a time-out, has none by default, and hands over corrupt bytes (its checks cover other paths).
"""

import base64
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from crc32c import crc32c

from yt8m_assets.data.retry import ChangedBytesError, RetryPolicy, call
from yt8m_assets.errors import ConfigError, CorruptShardError, MissingDataError
from yt8m_assets.storage import atomic_write

CHUNK_BYTES = 8 * 2**20
"""A large object is fetched in ranges of this size."""
NUM_PARALLEL = 4
"""Ranges in flight; with CHUNK_BYTES it bounds the memory of a download."""
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteStat:
    """What the store says of an object."""

    size: int
    """Bytes."""
    crc32c: int | None
    """The store's checksum, where it has one."""
    generation: str
    """Changes with every overwrite; empty where the store has none."""


def _describe(entry: Mapping[str, Any]) -> RemoteStat:
    checksum = entry.get("crc32c")
    value = int.from_bytes(base64.b64decode(checksum), "big") if checksum else None
    return RemoteStat(int(entry["size"]), value, str(entry.get("generation", "")))


@cache
def _connect(scheme: str, emulator: str, request_seconds: float) -> Any:
    """A filesystem of fsspec; for gs:// one that leaves all retrying to us."""
    import fsspec

    if scheme == "memory":
        return fsspec.filesystem("memory")
    # The preview features stall 23-60 s against anything but Google's own endpoint; read by gcsfs at its import.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import aiohttp
    from gcsfs.core import GCSFileSystem

    class OneAttemptFileSystem(GCSFileSystem):
        """Without the library's inner retries, which know no deadline."""

        _request = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)

    return OneAttemptFileSystem(
        token="anon" if emulator else None,
        requests_timeout=aiohttp.ClientTimeout(total=request_seconds),
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def parse_uri(uri: str) -> tuple[str, str]:
    """(scheme, path) of a remote URI. Raises ConfigError for a scheme that is not supported."""
    scheme, _, path = uri.partition("://")
    if scheme not in ("gs", "memory") or not path.strip("/"):
        raise ConfigError(f"{uri!r}: use a local path or gs://bucket/name")
    return scheme, path.rstrip("/")


class RemoteFiles:
    """The calls of an fsspec filesystem that this project uses, each retried under one policy. Thread-safe."""

    def __init__(self, scheme: str = "gs", policy: RetryPolicy | None = None) -> None:
        self.scheme, self.policy = scheme, policy or RetryPolicy()

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem below."""
        return _connect(self.scheme, os.environ.get("STORAGE_EMULATOR_HOST", ""), self.policy.request_seconds)

    def _call(self, path: str, permission: str, action: Callable[[Any], T]) -> T:
        uri = f"{self.scheme}://{path}"
        return call(lambda: action(self.filesystem), uri, f"storage.objects.{permission}", self.policy)

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        """Entries directly below a folder. Raises FileNotFoundError where there is none."""
        return list(self._call(path, "list", lambda files: files.ls(path, detail=detail)))

    def glob(self, pattern: str) -> dict[str, RemoteStat]:
        """Path -> what the store says of the objects that match a pattern, sorted; folders are left out."""
        found = self._call(pattern, "list", lambda files: files.glob(pattern, detail=True))
        return {name: _describe(entry) for name, entry in sorted(found.items()) if entry.get("type") != "directory"}

    def exists(self, path: str) -> bool:
        """Whether an object or folder is there."""
        try:
            self._call(path, "get", lambda files: files.info(path))
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: str) -> RemoteStat:
        """Size, checksum and generation. Raises MissingDataError."""
        entry = self._call(path, "get", lambda files: files.info(path))
        if entry.get("type") == "directory":
            raise MissingDataError(f"{self.scheme}://{path}: is a folder, not an object")
        return _describe(entry)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes: a range (its length checked), or the whole, checked against the store's checksum."""
        if start is None and end is None:
            return self._verified(path, self._cat_whole)
        first, last = start or 0, end
        content = bytes(self._call(path, "get", lambda files: files.cat_file(path, start=first, end=last)))
        if last is not None and len(content) != last - first:
            again = bytes(self._call(path, "get", lambda files: files.cat_file(path, start=first, end=last)))
            if len(again) != last - first:
                reason = f"{len(again)} bytes arrived of {last - first} asked for, twice"
                raise CorruptShardError(f"{self.scheme}://{path}", first, 0, reason)
            content = again
        return content

    def _cat_whole(self, path: str) -> bytes:
        described = self.stat(path)
        content = bytes(self._call(path, "get", lambda files: files.cat_file(path)))
        if len(content) != described.size:
            raise ChangedBytesError(f"{len(content)} bytes arrived of {described.size}")
        if described.crc32c is not None and crc32c(content) != described.crc32c:
            raise ChangedBytesError("the bytes do not match the store's crc32c")
        return content

    def _verified(self, path: str, fetch: Callable[[str], T]) -> T:
        """Fetch; once more when what arrived is not what the store holds; then CorruptShardError."""
        try:
            return fetch(path)
        except ChangedBytesError:
            try:
                return fetch(path)
            except ChangedBytesError as error:
                uri = f"{self.scheme}://{path}"
                raise CorruptShardError(uri, 0, 0, f"{error}, twice; check the object and the network") from error

    def get_file(self, path: str, local: str | Path) -> None:
        """Copy an object to a local path, in parallel ranges, checked against the store's size and checksum."""
        self._verified(path, lambda name: self._download(name, Path(local)))

    def _download(self, path: str, local: Path) -> None:
        described = self.stat(path)
        ranges = range(0, described.size, CHUNK_BYTES)
        stop = threading.Event()
        with local.open("wb") as file:
            file.truncate(described.size)

            def fetch(start: int) -> None:
                if stop.is_set():
                    return
                try:
                    end = min(start + CHUNK_BYTES, described.size)
                    os.pwrite(file.fileno(), self.cat_file(path, start, end), start)
                except BaseException:
                    stop.set()
                    raise

            with ThreadPoolExecutor(NUM_PARALLEL) as pool:
                list(pool.map(fetch, ranges))
        if described.crc32c is not None and file_crc32c(local) != described.crc32c:
            raise ChangedBytesError("the bytes do not match the store's crc32c")

    def put_file(self, local: str | Path, path: str) -> None:
        """Upload a file, and compare the store's checksum with ours."""

        def upload(name: str) -> None:
            self._call(name, "create", lambda files: files.put_file(str(local), name))
            described = self.stat(name)
            if described.size != Path(local).stat().st_size:
                raise ChangedBytesError(f"the store holds {described.size} bytes of {Path(local).stat().st_size}")
            if described.crc32c is not None and file_crc32c(Path(local)) != described.crc32c:
                raise ChangedBytesError("the store's crc32c is not that of the file")

        self._verified(path, upload)

    def pipe_file(self, path: str, content: bytes, mode: str = "overwrite") -> None:
        """Write an object. mode "create" raises FileExistsError where one with other content is there."""
        try:
            self._call(path, "create", lambda files: files.pipe_file(path, content, mode=mode))
        except FileExistsError:
            if self.cat_file(path) != content:  # else an attempt whose answer was lost had succeeded
                raise

    def rm(self, path: str, recursive: bool = False) -> None:
        """Delete an object, or a folder with all below it; what is gone already is fine."""
        try:
            self._call(path, "delete", lambda files: files.rm(path, recursive=recursive))
        except FileNotFoundError:
            return


def file_crc32c(path: Path) -> int:
    """crc32c of a file's bytes."""
    crc = 0
    with path.open("rb") as file:
        while content := file.read(2**20):
            crc = crc32c(content, crc)
    return crc


_policy = RetryPolicy()


def set_retry_policy(policy: RetryPolicy) -> RetryPolicy:
    """Use another policy for shards of this process from now on; returns the one before."""
    global _policy
    before, _policy = _policy, policy
    return before


def open_filesystem(root_uri: str) -> tuple[RemoteFiles, str]:
    """The files of a remote root (gs://bucket/folder) and the root's path in them."""
    scheme, path = parse_uri(root_uri)
    return RemoteFiles(scheme, _policy), path if scheme == "gs" else "/" + path.lstrip("/")


def stat(uri: str) -> RemoteStat:
    """Size, checksum and generation of an object. Raises MissingDataError."""
    files, path = open_filesystem(uri)
    return files.stat(path)


def glob_uris(pattern: str) -> dict[str, RemoteStat]:
    """URI -> size and checksum of the objects that a gs:// pattern matches, sorted: one listing, however many match."""
    files, path = open_filesystem(pattern)
    return {f"{files.scheme}://{name.lstrip('/')}": described for name, described in files.glob(path).items()}


def list_folder(uri: str) -> list[str]:
    """Names directly below a folder of a bucket, sorted; empty where it does not exist."""
    files, path = open_filesystem(uri)
    try:
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in files.ls(path))
    except FileNotFoundError:
        return []


def fetch_to(uri: str, target: Path) -> None:
    """Download an object; `target` appears whole and verified, or not at all."""
    files, path = open_filesystem(uri)
    with atomic_write(target) as temporary:
        files.get_file(path, temporary)
