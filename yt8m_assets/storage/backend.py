"""Where artifacts lie: a folder on this machine, or a bucket. Only what the store needs, and nothing that overwrites.

Both backends share one promise: `create_exclusive` makes an object that was not there, whole, or raises
`FileExistsError`. The store builds its atomic publication on that alone.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yt8m_assets.errors import ConfigError, PartitionBusyError
from yt8m_assets.storage.files import atomic_write, free_space_error, fsync_folder

if TYPE_CHECKING:
    from yt8m_assets.storage.remote import RemoteStat

INDEXING_FOLDER = "indexing"
"""Folder of the root with the indexes of unfinished passes: see `data.dataset.shelf`."""
SUBMITTED_FOLDER = "submitted"
"""Folder of the root with the recipes of jobs on other machines."""
_NUM_PARALLEL = 8
"""Files of an artifact that are fetched at the same time."""


class Backend(Protocol):
    """What a store asks of the place where artifacts lie. Names are relative, with forward slashes."""

    root_uri: str

    def names(self, folder: str) -> list[str]: ...

    def read_bytes(self, name: str) -> bytes: ...

    def create_exclusive(self, name: str, content: bytes) -> None: ...

    def put_bytes(self, name: str, content: bytes) -> None: ...

    def staging(self, key: str) -> Path: ...

    def put_folder(self, local: Path, folder: str) -> None: ...

    def put_file(self, local: Path, name: str) -> None: ...

    def local_folder(self, folder: str, files: list[str]) -> Path: ...

    def drop_copy(self, name: str) -> bool: ...

    def delete(self, folder: str) -> None: ...

    def lock(self, key: str) -> Any: ...


class LocalBackend:
    """Artifacts in a folder of this machine (or a network file system that honours link and rename)."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # without `..`: listings are, and URIs are compared with theirs
        self.root_uri = str(self.root)

    def names(self, folder: str) -> list[str]:
        """Names directly inside `folder`, sorted; empty where it does not exist."""
        try:
            return sorted(os.listdir(self.root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read_bytes(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def create_exclusive(self, name: str, content: bytes) -> None:
        path = self.root / name
        temporary = path.with_name(f".tmp-{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)  # unlike a rename, a link never replaces
            fsync_folder(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise free_space_error(path, error, len(content)) from error
        finally:
            with suppress(OSError):
                temporary.unlink()

    def put_bytes(self, name: str, content: bytes) -> None:
        with atomic_write(self.root / name) as temporary:
            temporary.write_bytes(content)

    def staging(self, key: str) -> Path:
        """A new empty folder on the file system of the target, so that moving it is a rename."""
        folder = self.root / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in os.listdir(folder):  # the caller holds the key's lock: leftovers belong to dead processes
                if name.startswith(".tmp-"):
                    stale = folder / name
                    shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
            path = folder / f".tmp-{secrets.token_hex(4)}"
            path.mkdir()
        except OSError as error:
            raise free_space_error(folder, error) from error
        return path

    def put_folder(self, local: Path, folder: str) -> None:
        try:
            for path in sorted(local.rglob("*")):
                with path.open("rb") if path.is_file() else open(os.devnull, "rb") as file:
                    if path.is_file():
                        os.fsync(file.fileno())
            os.rename(local, self.root / folder)
            fsync_folder((self.root / folder).parent)
        except OSError as error:
            raise free_space_error(self.root / folder, error) from error

    def put_file(self, local: Path, name: str) -> None:
        with atomic_write(self.root / name) as temporary:
            shutil.copyfile(local, temporary)

    def local_folder(self, folder: str, files: list[str]) -> Path:
        return self.root / folder

    def drop_copy(self, name: str) -> bool:
        """Nothing here is a copy."""
        return False

    def delete(self, folder: str) -> None:
        path = self.root / folder
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the key for this process; the kernel lets go when the process dies, so no lock is ever stale."""
        folder = self.root / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise free_space_error(folder, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise PartitionBusyError(f"{key}: another run is writing it; wait for that run and try again") from error
        finally:
            os.close(descriptor)


class RemoteBackend:
    """Artifacts in a bucket, through fsspec; verified copies of what is read lie in a local cache folder."""

    def __init__(self, root_uri: str, cache: Path) -> None:
        from yt8m_assets.storage.remote import open_filesystem

        self.root_uri = root_uri.rstrip("/")
        self.cache = cache
        self.filesystem, self.prefix = open_filesystem(self.root_uri)

    def _path(self, name: str) -> str:
        return f"{self.prefix}/{name}" if name else self.prefix

    def names(self, folder: str) -> list[str]:
        try:
            entries = self.filesystem.ls(self._path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries})

    def read_bytes(self, name: str) -> bytes:
        return bytes(self.filesystem.cat_file(self._path(name)))

    def create_exclusive(self, name: str, content: bytes) -> None:
        if self.filesystem.exists(self._path(name)):
            raise FileExistsError(name)
        self.filesystem.pipe_file(self._path(name), content, mode="create")

    def put_bytes(self, name: str, content: bytes) -> None:
        self.filesystem.pipe_file(self._path(name), content)

    def staging(self, key: str) -> Path:
        """A new empty folder of this process; those of processes that died are swept."""
        folder = self.cache / "staging"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if not _lives(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            path = folder / f"{_HOST}-{os.getpid()}-{_start_of(os.getpid())}-{secrets.token_hex(4)}"
            path.mkdir()
        except OSError as error:
            raise free_space_error(folder, error) from error
        return path

    def put_folder(self, local: Path, folder: str) -> None:
        for path in sorted(local.rglob("*")):
            if path.is_file():
                name = f"{folder}/{path.relative_to(local).as_posix()}"
                self.filesystem.put_file(str(path), self._path(name))
        shutil.rmtree(local)

    def put_file(self, local: Path, name: str) -> None:
        self.filesystem.put_file(str(local), self._path(name))

    def local_folder(self, folder: str, files: list[str]) -> Path:
        target = self.cache / "artifacts" / folder

        def fetch(name: str) -> None:
            with atomic_write(target / name) as temporary:
                described = self.described(f"{folder}/{name}")
                self.filesystem.get_file(self._path(f"{folder}/{name}"), str(temporary), described)

        with ThreadPoolExecutor(_NUM_PARALLEL) as pool:
            list(pool.map(fetch, [name for name in files if not (target / name).exists()]))
        return target

    def described(self, name: str) -> "RemoteStat | None":
        """What a listing has said of an object; None where none was made, and the store is asked."""
        return None

    def drop_copy(self, name: str) -> bool:
        """Delete the copy of a file, so that the next `local_folder` fetches it; whether there may be a better one."""
        (self.cache / "artifacts" / name).unlink(missing_ok=True)
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Name below `folder` -> bytes of every object in it, folders within it included."""
        found: dict[str, int] = {}
        pending = [self._path(folder)]
        while pending:
            try:
                entries = self.filesystem.ls(pending.pop(), detail=True, refresh=True)
            except FileNotFoundError:
                continue
            for entry in entries:
                name = str(entry["name"]).rstrip("/").removeprefix(f"{self._path(folder)}/")
                if entry["type"] == "directory":
                    pending.append(self._path(f"{folder}/{name}"))
                else:
                    found[name] = int(entry["size"])
        return found

    def delete(self, folder: str) -> None:
        path = self._path(folder)
        if self.filesystem.exists(path):
            self.filesystem.rm(path, recursive=True)
        shutil.rmtree(self.cache / "artifacts" / folder, ignore_errors=True)  # the copies of what is gone

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Buckets have no locks: two writers race, and the create-only manifest lets one of them through."""
        yield


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _start_of(process_id: int) -> int | None:
    """When a process of this machine started, in seconds, for numbers are given again; None where there is none."""
    import psutil

    try:
        return int(psutil.Process(process_id).create_time())
    except psutil.NoSuchProcess:
        return None


def _lives(name: str) -> bool:
    """Whether the process that a staging folder is named after may still run: it does, or is of another host."""
    host, _, process = name.partition("-")
    if host != _HOST:
        return True
    process_id, started, _ = process.split("-")
    now = _start_of(int(process_id))
    return now is not None and abs(now - int(started)) < 2


def open_backend(root_uri: str, cache: Path) -> Backend:
    """The backend of a root: a local path, or a URI such as gs://bucket/folder."""
    if "://" not in root_uri:
        return LocalBackend(Path(root_uri))
    scheme = root_uri.split("://", 1)[0]
    if scheme == "file":
        return LocalBackend(Path(root_uri.removeprefix("file://")))
    if scheme not in ("gs", "memory"):
        raise ConfigError(f"storage root {root_uri!r}: use a local path or a gs:// URI")
    return RemoteBackend(root_uri, cache)
