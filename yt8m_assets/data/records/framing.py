"""TFRecord framing: length, masked crc32c of the length, data, masked crc32c of the data.

A shard is read, not mapped: one that is cut short while it is open gives an error with its name, where a map would end
the process by SIGBUS. A record at a time, so memory does not grow with the shard.
"""

import errno
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from crc32c import crc32c

from yt8m_assets.errors import CorruptShardError, MissingDataError, Yt8mError
from yt8m_assets.storage import atomic_write
from yt8m_assets.storage.cache import Cache, ShardCache
from yt8m_assets.storage.remote import RemoteStat

HEADER_BYTES = 12
"""Length (8) and its checksum (4)."""
FOOTER_BYTES = 4
"""Checksum of the data."""
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
MAX_RECORD_BYTES = 8 * 2**20
"""A record may claim no more: 5000 frames of 1152 bytes and room for labels."""
_MAX_REOPENED = 3
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_LOOKS_LIKE = (
    (b"\x1f\x8b", "it looks like gzip; decompress it first"),
    (b"PK\x03\x04", "it looks like a zip archive; unpack it first"),
    (b"<", "it looks like HTML or XML, perhaps an error page saved by a download; fetch the shard again"),
    (b"{", "it looks like JSON, perhaps an error answer saved by a download; fetch the shard again"),
    (b"version https://git-lfs", "it is a Git LFS pointer; fetch the file itself"),
    (b"PAR1", "it looks like Parquet"),
)


def masked_crc(data: Any) -> int:
    """The TFRecord checksum of a bytes-like object: crc32c rotated right by 15 bits plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def appearance(head: bytes) -> str:
    """What a file that is no TFRecord looks like from its first bytes, or an empty text."""
    text = head.lstrip()
    return next((what for start, what in _LOOKS_LIKE if text.startswith(start)), "")


class ShardFile:
    """A shard open for reading at any place. `size` is its bytes when it was opened.

    described: what a listing said of a bucket's object; with it, opening one whose copy is here asks the store nothing.
    """

    def __init__(self, uri: str, cache: ShardCache | None = None, described: RemoteStat | None = None) -> None:
        self.uri, self._described, self._renewed = uri, described, False
        self._copies = (cache or Cache().shards) if is_remote(uri) else None
        self.mark: object
        """Another one means other content; a cached copy's path names its object, whenever it was fetched."""
        if self._copies is not None:
            self._descriptor, self.mark, self.size = self._copies.open(uri, described)
        else:
            self._descriptor = _open_local(uri)
            found = os.fstat(self._descriptor)
            self.mark, self.size = (found.st_ino, found.st_mtime_ns), found.st_size
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, position: int, size: int) -> bytes:
        """The bytes at a place; fewer only where the file ends. Raises OSError naming the shard."""
        try:
            content = os.pread(self._descriptor, size, position)
            for _ in range(_MAX_REOPENED):  # a copy that made room for others was emptied
                if len(content) == min(size, max(self.size - position, 0)) or not self._open_again():
                    break
                content = os.pread(self._descriptor, size, position)
        except Yt8mError:
            raise
        except OSError as error:
            raise OSError(error.errno, f"byte {position}: {error.strerror}", self.uri) from error
        return content

    def renew(self) -> bool:
        """Open the copy of a bucket's object anew, fetched again if it rotted here. False the second time, and where
        there is no such copy of the same object."""
        if self._renewed:
            return False
        self._renewed = True
        return self._open_again(check=True)

    def _open_again(self, check: bool = False) -> bool:
        """Take the copy that is there now, fetched if need be; whether it is one of the same object."""
        if self._copies is None:
            return False
        copy = self._copies.open(self.uri, self._described, check=check)
        try:
            if copy.path != self.mark:
                return False  # the object has changed, and half of one and half of the other is neither
            os.dup2(copy.descriptor, self._descriptor, inheritable=False)
            return True
        finally:
            os.close(copy.descriptor)


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _once_more(
    read: Callable[Concatenate[ShardFile, Parameters], Result],
) -> Callable[Concatenate[ShardFile, Parameters], Result]:
    """Read again when what was damaged may have been a copy of something sound."""

    @wraps(read)
    def reading(file: ShardFile, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return read(file, *args, **kwargs)
        except CorruptShardError:
            if not file.renew():
                raise
            return read(file, *args, **kwargs)

    return reading


@_once_more
def read_header(file: ShardFile, position: int, record: int) -> int:
    """Length of the record that starts at `position`, its header verified. Raises CorruptShardError."""
    head, rest = file.read(position, HEADER_BYTES), file.size - position
    if len(head) < HEADER_BYTES:
        reason = f"truncated: {len(head)} bytes of a 12-byte header"
        raise CorruptShardError(file.uri, position, record, _explain(file, reason))
    length, checksum = _HEADER.unpack(head)
    if masked_crc(head[:8]) != checksum:
        reason = _explain(file, "the checksum of the record's length is wrong")
        raise CorruptShardError(file.uri, position, record, reason)
    if length > MAX_RECORD_BYTES:
        reason = f"it claims {length:,} bytes, more than the limit of {MAX_RECORD_BYTES:,}"
        raise CorruptShardError(file.uri, position, record, reason)
    if rest < length + OVERHEAD_BYTES:
        reason = f"truncated: {rest - HEADER_BYTES:,} of {length + FOOTER_BYTES:,} bytes after the header"
        raise CorruptShardError(file.uri, position, record, reason)
    return int(length)


@_once_more
def read_data(file: ShardFile, position: int, length: int, record: int) -> tuple[memoryview, int]:
    """Data of the record that starts at `position`, and the checksum stored with it, verified.

    Raises CorruptShardError.
    """
    content = file.read(position + HEADER_BYTES, length + FOOTER_BYTES)
    if len(content) < length + FOOTER_BYTES:
        reason = f"truncated while it was open: {len(content):,} of {length + FOOTER_BYTES:,} bytes after the header"
        raise CorruptShardError(file.uri, position, record, reason)
    data, checksum = memoryview(content)[:length], int(_FOOTER.unpack_from(content, length)[0])
    if masked_crc(data) != checksum:
        raise CorruptShardError(file.uri, position, record, "the checksum of the record's data is wrong")
    return data, checksum


def walk_headers(file: ShardFile) -> Iterator[tuple[int, int, int]]:
    """Position, number and length of each record, by the headers alone. Raises CorruptShardError at a damaged one."""
    position = record = 0
    while position < file.size:
        length = read_header(file, position, record)
        yield position, record, length
        position += length + OVERHEAD_BYTES
        record += 1


def framing_crc(file: ShardFile) -> tuple[int, int]:
    """Records, and the crc32c over the framing bytes of each: a page a record is read, not the frames.

    With damaged framing of the part that is sound; the damaged record then counts, too.
    """
    count = crc = 0
    try:
        for position, _, length in walk_headers(file):
            footer = file.read(position + HEADER_BYTES + length, FOOTER_BYTES)
            header = _HEADER.pack(length, masked_crc(struct.pack("<Q", length)))
            crc = crc32c(footer, crc32c(header, crc))
            count += 1
    except CorruptShardError:
        count += 1
    return count, crc


def _explain(file: ShardFile, reason: str) -> str:
    what = appearance(file.read(0, 64))
    return f"{reason}; {what}" if what else reason


def is_remote(uri: str) -> bool:
    """Whether a shard lies in a bucket."""
    return "://" in uri and not uri.startswith("file://")


def _open_local(uri: str) -> int:
    path = Path(uri.removeprefix("file://"))
    if path.is_dir():
        raise MissingDataError(f"{uri}: is a folder, not a shard")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingDataError(f"{uri}: no such shard") from error
    except PermissionError as error:
        raise MissingDataError(f"{uri}: may not be read ({os.strerror(error.errno or errno.EACCES)})") from error


def local_file(uri: str, cache: ShardCache | None = None, described: RemoteStat | None = None) -> Path:
    """The path of a shard on this machine: itself, or a verified copy of a gs:// object (by default in the home).

    described: what a listing said of the object.
    """
    if not is_remote(uri):
        return Path(uri.removeprefix("file://"))
    return (cache or Cache().shards).get(uri, described)


def read_whole(uri: str, cache: ShardCache | None = None) -> bytes:
    """The bytes of a small file, local or in a bucket. A copy that makes room for others meanwhile is fetched again."""
    if not is_remote(uri):
        return Path(uri.removeprefix("file://")).read_bytes()
    file = ShardFile(uri, cache)
    return file.read(0, file.size)


class RecordWriter:
    """Writes framed records with both checksums; the file takes its name when the block ends without an error."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_records = 0

    def __enter__(self) -> "RecordWriter":
        self._atomic = atomic_write(self.path)
        self._file = self._atomic.__enter__().open("wb", buffering=2**20)
        return self

    def write(self, data: bytes) -> None:
        """Append one record."""
        length = struct.pack("<Q", len(data))
        self._file.write(length + _FOOTER.pack(masked_crc(length)))
        self._file.write(data)
        self._file.write(_FOOTER.pack(masked_crc(data)))
        self.num_records += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError as close_error:
            self._atomic.__exit__(type(close_error), close_error, close_error.__traceback__)
            raise
        self._atomic.__exit__(kind, error, traceback)
