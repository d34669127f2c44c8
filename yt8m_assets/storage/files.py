"""Writing files so that they are whole or not there, and telling when the place is at fault."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yt8m_assets.errors import StorageError

_SETTLED_NS = 2 * 10**9
_AHEAD_NS = 48 * 3600 * 10**9
"""More than a file server's clock goes ahead of ours."""


def free_space_error(path: object, error: OSError, needed: int | None = None) -> StorageError:
    """A StorageError that names the path, the cause, and the bytes that were to be written where known."""
    cause = "no space left" if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else (error.strerror or error)
    size = f" ({needed:,} bytes were to be written)" if needed else ""
    return StorageError(f"{path}: cannot write: {cause}{size}; free some space or fix the permissions and run again")


def is_write_error(error: OSError, path: Path) -> bool:
    """Whether an error came from writing below `path`: no space anywhere, or that place refuses or fails."""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return True
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG):
        return False
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return any(Path(os.fspath(name)).is_relative_to(path) for name in names)


def is_settled(changed_ns: int) -> bool:
    """Whether a file's time of change tells that it is the same: one changed just now may change again without another.

    A time that lies days ahead is of a wrong clock or an archive, and no change of today repeats it.
    """
    age = time.time_ns() - changed_ns
    return age > _SETTLED_NS or age < -_AHEAD_NS


def fsync_folder(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block the file is synced and takes the final name.

    On an exception nothing appears under `path`, and what stood there stays. Raises StorageError when the disk is
    full or the folder cannot be written; any other error of the block passes as it is.
    """
    temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    writing = True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = False  # what the block does besides writing keeps its own errors
        yield temporary
        writing = True
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        if not writing and not is_write_error(error, path.parent):
            raise
        raise free_space_error(path, error) from error
    finally:
        with suppress(OSError):  # the folder itself may be what is wrong; the error above says so
            temporary.unlink()
