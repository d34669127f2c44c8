"""Uploads that resume: a session of Cloud Storage says how far it got, and the rest follows from there.

Protocol: https://cloud.google.com/storage/docs/performing-resumable-uploads (read 2026-11).
"""

import io
import mimetypes
from pathlib import Path
from typing import Any

from yt8m_assets.errors import TransientError
from yt8m_assets.storage.retry import RetryPolicy, insist, status_of

SINGLE_BYTES = 2**19
"""A file up to this size goes in one request, without a session; aiohttp warns of plain bytes above 1 MiB."""
CHUNK_BYTES = 16 * 2**20
"""Sent with one request of a session."""
_GRANULE = 2**18
"""The store keeps whole multiples of this until the end."""
_MAX_SESSIONS = 3
"""Sessions that a store may lose (404, 410) before the upload is given up."""


class ResumableUpload:
    """One file on its way to `path` (bucket/name)."""

    def __init__(self, files: Any, local: Path, path: str, policy: RetryPolicy) -> None:
        self.files, self.local, self.path, self.policy = files, local, path, policy
        self.size = local.stat().st_size
        self.offset = 0
        """Bytes that the store has confirmed."""
        self.num_sessions = 0
        self._session: str | None = None
        self._doubtful = False

    async def run(self) -> None:
        """Send everything. Raises TransientError when the store confirms nothing more until the deadline."""
        while self.offset < self.size:
            await insist(self._advance, self.policy, self.files.renew)

    async def _advance(self) -> None:
        """Get further: by hearing that more had arrived than was answered, or by sending a chunk."""
        try:
            if self._session is None:
                await self._begin()
            before = self.offset
            if self._doubtful:
                await self._put("PUT", b"", f"bytes */{self.size}")
            if self.offset > before:
                return
            self._doubtful = True  # until an answer says what arrived
            with self.local.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read(CHUNK_BYTES)
            # POST as gcsfs does it: a PUT whose connection breaks is sent a second time by aiohttp itself
            await self._put("POST", chunk, f"bytes {self.offset}-{self.offset + len(chunk) - 1}/{self.size}")
        except Exception as error:
            lost = isinstance(error, FileNotFoundError) or status_of(error) == 410
            if not lost or self.num_sessions == 0:
                raise
            self._session, self.offset = None, 0

    async def _begin(self) -> None:
        from gcsfs.core import initiate_upload

        if self.num_sessions == _MAX_SESSIONS:
            raise TransientError(f"gs://{self.path}: the store lost the upload {_MAX_SESSIONS} times; try again later")
        bucket, key, _ = self.files.split_path(self.path)
        self._session = await initiate_upload(self.files, bucket, key, content_type(self.local))
        self.num_sessions += 1
        self._doubtful = False

    async def _put(self, method: str, chunk: bytes, content_range: str) -> None:
        head = {"Content-Range": content_range, "Content-Length": str(len(chunk))}
        status, headers, _, _ = await self.files.attempt(method, self._session, headers=head, data=io.BytesIO(chunk))
        held = int(headers["Range"].rpartition("-")[2]) + 1 if "Range" in headers else 0
        self.offset = held // _GRANULE * _GRANULE if status == 308 else self.size
        self._doubtful = False


def content_type(local: Path) -> str:
    """What a browser is told that the object is."""
    return mimetypes.guess_type(local.name)[0] or "application/octet-stream"
