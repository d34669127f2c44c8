"""TFRecord framing: length, masked crc32c of the length, data, masked crc32c of the data.

A shard is mapped, not read: a record is a view into the map, and pages already passed are given back to the kernel, so
memory does not grow with the shard.
"""

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from crc32c import crc32c

from yt8m_assets.errors import CorruptShardError, MissingDataError
from yt8m_assets.storage import atomic_write

HEADER_BYTES = 12
"""Length (8) and its checksum (4)."""
FOOTER_BYTES = 4
"""Checksum of the data."""
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES
MAX_RECORD_BYTES = 8 * 2**20
"""A record may claim no more: 5000 frames of 1152 bytes and room for labels."""
_RELEASE_BYTES = 16 * 2**20
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


def frame_record(data: bytes) -> bytes:
    """One framed record."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _FOOTER.pack(masked_crc(length)), data, _FOOTER.pack(masked_crc(data))))


def appearance(head: bytes) -> str:
    """What a file that is no TFRecord looks like from its first bytes, or an empty text."""
    text = head.lstrip()
    return next((what for start, what in _LOOKS_LIKE if text.startswith(start)), "")


class MappedFile:
    """A file mapped for reading. `view` is a memoryview of all its bytes; `release` gives passed pages back."""

    def __init__(self, path: Path, uri: str) -> None:
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else None
        except FileNotFoundError as error:
            raise MissingDataError(f"{uri}: no such shard") from error
        except IsADirectoryError as error:
            raise MissingDataError(f"{uri}: is a folder, not a shard") from error
        except PermissionError as error:
            raise MissingDataError(f"{uri}: may not be read ({os.strerror(error.errno or errno.EACCES)})") from error
        self.view = memoryview(self._map) if self._map is not None else memoryview(b"")
        self._released = 0

    def release(self, position: int) -> None:
        """Drop the pages before `position` from this process once enough have gathered."""
        until = position & ~(mmap.PAGESIZE - 1)
        if self._map is not None and until - self._released >= _RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, until - self._released)
            self._released = until

    def drop(self) -> None:
        """Drop every page from this process; they come back from the system's cache when touched again."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def header_length(view: memoryview, position: int, record: int, uri: str, max_record_bytes: int) -> int:
    """Length of the record that starts at `position`, its header verified. Raises CorruptShardError."""
    rest = len(view) - position
    if rest < HEADER_BYTES:
        raise CorruptShardError(uri, position, record, _explain(view, f"truncated: {rest} bytes of a 12-byte header"))
    length, checksum = _HEADER.unpack_from(view, position)
    if masked_crc(view[position : position + 8]) != checksum:
        raise CorruptShardError(uri, position, record, _explain(view, "the checksum of the record's length is wrong"))
    if length > max_record_bytes:
        reason = f"it claims {length:,} bytes, more than the limit of {max_record_bytes:,}"
        raise CorruptShardError(uri, position, record, reason)
    if rest < length + OVERHEAD_BYTES:
        reason = f"truncated: {rest - HEADER_BYTES:,} of {length + FOOTER_BYTES:,} bytes after the header"
        raise CorruptShardError(uri, position, record, reason)
    return int(length)


def check_data(view: memoryview, position: int, length: int, record: int, uri: str) -> memoryview:
    """The data of the record that starts at `position`, its checksum verified. Raises CorruptShardError."""
    start = position + HEADER_BYTES
    data = view[start : start + length]
    if masked_crc(data) != _FOOTER.unpack_from(view, start + length)[0]:
        raise CorruptShardError(uri, position, record, "the checksum of the record's data is wrong")
    return data


def _explain(view: memoryview, reason: str) -> str:
    what = appearance(bytes(view[:64]))
    return f"{reason}; {what}" if what else reason


def local_file(uri: str) -> Path:
    """The path of a shard on this machine: itself, or a verified cached copy of a gs:// object."""
    if "://" not in uri:
        return Path(uri)
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    from yt8m_assets.data.cache import default_cache

    return default_cache().get(uri)


def read_records(uri: str, check_crc: bool = True, *, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[memoryview]:
    """Yield the data of each record as a view into the mapped file.

    uri: local path or gs:// URI. check_crc: verify the data's checksum (the length's is always verified).
    Raises CorruptShardError naming file, byte and record; MissingDataError when there is no such file.
    """
    file = MappedFile(local_file(uri), uri)
    position = record = 0
    while position < file.size:
        length = header_length(file.view, position, record, uri, max_record_bytes)
        start = position + HEADER_BYTES
        data = check_data(file.view, position, length, record, uri) if check_crc else file.view[start : start + length]
        yield data
        position = start + length + FOOTER_BYTES
        record += 1
        file.release(position)


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
