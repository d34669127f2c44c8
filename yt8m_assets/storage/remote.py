"""Objects in a bucket (gs://) through fsspec and gcsfs, with our own retries (connection.py) and checksums.

gcsfs alone hands over corrupt bytes: its checks cover other paths.
"""

import base64
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from crc32c import crc32c
from fsspec.asyn import sync

from yt8m_assets.errors import ConfigError, CorruptShardError, MissingDataError, StorageError, Yt8mError
from yt8m_assets.storage.connection import connect, is_zonal, of_zonal_buckets, presents_certificate, typed_error
from yt8m_assets.storage.ranges import RangeReader, Stop, run_all
from yt8m_assets.storage.retry import ChangedBytesError, Patience, RetryPolicy, asked_for
from yt8m_assets.storage.upload import SINGLE_BYTES, ResumableUpload, content_type

CHUNK_BYTES = 16 * 2**20
"""A large object is fetched in ranges of this size."""
T = TypeVar("T")
_CHANGED = "the object has changed since the store was asked what it is; run again"


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

    def filesystem(self, path: str) -> Any:
        """The fsspec filesystem that reads and writes a path."""
        return fsspec.filesystem("memory") if self.scheme == "memory" else connect(path.split("/")[0], self.policy)

    def _call(self, path: str, permission: str, action: Callable[[Any], T]) -> T:
        """Run `action` on the filesystem.

        Raises MissingDataError (404), StorageError (401, 403, 400: names bucket and permission, never a token) and
        TransientError (429, 5xx, time-outs, resets that did not pass). FileExistsError goes through.
        """
        uri, files = f"{self.scheme}://{path}", self.filesystem(path)
        asked_for.set(uri)
        patience = Patience(self.policy)
        while True:
            try:
                return action(files)
            except MissingDataError:
                raise
            except FileNotFoundError:
                raise MissingDataError(f"{uri}: no such object") from None
            except (FileExistsError, Yt8mError):
                raise
            except Exception as error:
                if self.scheme == "memory":
                    raise
                denied = typed_error(error, uri, f"storage.objects.{permission}", files)
                if denied is not None:
                    raise denied from None  # the original may quote headers
                if not of_zonal_buckets(error):  # other requests were insisted on where they were made
                    raise
                time.sleep(patience.pause(error))

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        """Entries directly below a folder. Raises FileNotFoundError where there is none."""
        return list(self._call(path, "list", lambda files: files.ls(path, detail=detail)))

    def glob(self, pattern: str) -> dict[str, RemoteStat]:
        """Path -> what the store says of the objects that match a pattern, sorted; folders are left out."""
        found = self._call(pattern, "list", lambda files: files.glob(pattern, detail=True))
        return {name: _describe(entry) for name, entry in sorted(found.items()) if entry.get("type") != "directory"}

    def find(self, path: str) -> dict[str, RemoteStat]:
        """Path -> what the store says of every object below a folder: one listing, however deep it is."""
        found = self._call(path, "list", lambda files: files.find(path, detail=True))
        return {name: _describe(entry) for name, entry in found.items()}

    def exists(self, path: str) -> bool:
        """Whether an object or folder is there."""
        try:
            self._call(path, "get", lambda files: files.info(path))
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: str) -> RemoteStat:
        """Size, checksum and generation. Raises MissingDataError."""
        entry = self._call(path, "get", lambda files: self._object(files, path))
        if entry.get("type") == "directory":
            raise MissingDataError(f"{self.scheme}://{path}: is a folder, not an object")
        return _describe(entry)

    def _object(self, files: Any, path: str) -> Mapping[str, Any]:
        """What the store says of a name. gcsfs's `info` alone also lists the folder of that name, each time."""
        if self.scheme == "memory":
            return files.info(path)
        try:
            return sync(files.loop, files._get_object, path)
        except FileNotFoundError:
            return sync(files.loop, files._get_directory_info, path, *files.split_path(path))

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

    def get_file(
        self,
        path: str,
        local: str | Path,
        described: RemoteStat | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Copy an object to a local path, in parallel ranges, checked against the store's size and checksum.

        described: what a listing said of it; else the store is asked. Raises CorruptShardError where it says otherwise
        by now. stop: set it to end the download; then `ranges.Stopped` is raised.
        """
        stopping = stop or Stop()
        try:
            self._verified(path, lambda name: self._download(name, Path(local), described or self.stat(name), stopping))
        except (CorruptShardError, StorageError) as error:  # the latter where a range lies behind the end by now
            if described is None or self.stat(path) == described:
                raise
            raise CorruptShardError(f"{self.scheme}://{path}", 0, 0, _CHANGED) from error

    def _download(self, path: str, local: Path, described: RemoteStat, stop: Stop) -> None:
        descriptor = os.open(local, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)  # never short: a cache counts its bytes
        try:
            os.ftruncate(descriptor, described.size)
            failed = Stop(stop)  # the first range that fails ends the others
            self._call(path, "get", lambda files: self._read_ranges(files, path, descriptor, described, failed))
        finally:
            os.close(descriptor)
        if described.crc32c is not None and file_crc32c(local) != described.crc32c:
            raise ChangedBytesError("the bytes do not match the store's crc32c")

    def _read_ranges(self, files: Any, path: str, descriptor: int, described: RemoteStat, stop: Stop) -> None:
        def copy(first: int, end: int) -> None:
            os.pwrite(descriptor, self.cat_file(path, first, end), first)

        plain = self.scheme == "gs" and not is_zonal(files, path) and not presents_certificate(files)
        read = RangeReader(files, path, described.generation, self.policy, descriptor, stop).read if plain else copy
        ends = [(first, min(first + CHUNK_BYTES, described.size)) for first in range(0, described.size, CHUNK_BYTES)]
        run_all([partial(read, first, end) for first, end in ends], stop)

    def put_file(self, local: str | Path, path: str) -> None:
        """Upload a file, and compare the store's checksum with ours."""

        def upload(name: str) -> None:
            self._call(name, "create", lambda files: self._send(files, Path(local), name))
            described = self.stat(name)
            if described.size != Path(local).stat().st_size:
                raise ChangedBytesError(f"the store holds {described.size} bytes of {Path(local).stat().st_size}")
            if described.crc32c is not None and file_crc32c(Path(local)) != described.crc32c:
                raise ChangedBytesError("the store's crc32c is not that of the file")

        self._verified(path, upload)

    def _send(self, files: Any, local: Path, path: str) -> None:
        if self.scheme == "memory" or is_zonal(files, path):
            files.put_file(str(local), path)
        elif local.stat().st_size <= SINGLE_BYTES:
            files.pipe_file(path, local.read_bytes(), content_type=content_type(local))
        else:
            sync(files.loop, ResumableUpload(files, local, path, self.policy).run)

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


def fetch_to(uri: str, target: Path, described: RemoteStat | None = None, stop: Stop | None = None) -> None:
    """Download an object, verified. See `RemoteFiles.get_file`; on an error `target` may hold anything."""
    files, path = open_filesystem(uri)
    files.get_file(path, target, described, stop)
