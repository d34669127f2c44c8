"""Objects of a bucket read in parallel ranges, straight into a file.

Their size and number were chosen by measurement (docs/decisions). A range goes on
where its line broke; what is held in memory is a buffer a range.
"""

import http.client
import os
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from yt8m_assets.errors import CorruptShardError
from yt8m_assets.storage.retry import ChangedBytesError, Patience, RetryPolicy, asked_for

NUM_PARALLEL = 32
"""Ranges in flight in a process."""
_BUFFER_BYTES = 2**19
_IDLE_SECONDS = 30.0


class Stopped(Exception):
    """Somebody asked for the end before it was reached."""


class Stop:
    """Asks threads for their end: when it is set, or the one it belongs to."""

    def __init__(self, owner: "Stop | None" = None) -> None:
        self._event, self._owner = threading.Event(), owner

    def set(self) -> None:
        """Ask for the end."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set() or (self._owner is not None and self._owner.is_set())

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the end is asked for; whether it is."""
        until = time.monotonic() + seconds
        while not self.is_set() and (left := until - time.monotonic()) > 0:
            self._event.wait(min(left, 0.2))
        return self.is_set()


@dataclass
class RangeReader:
    """Reads ranges of one object, through the address and the credentials of a filesystem of gcsfs."""

    files: Any
    path: str
    """bucket/name."""
    generation: str
    """The one that is read; where there is another by now, ChangedBytesError."""
    policy: RetryPolicy
    descriptor: int
    """Of the file that takes the bytes, each at its place."""
    stop: Stop = field(default_factory=Stop)

    def read(self, first: int, end: int) -> None:
        """Copy the bytes [first, end). Raises what `insist` raises, and Stopped."""
        asked_for.set(f"gs://{self.path}")
        patience, num_empty = Patience(self.policy, self.files.renew), 0
        while first < end:
            before = first
            try:
                for size in self._answer(first, end):
                    first += size
            except Exception as error:
                if isinstance(error, Stopped | ChangedBytesError):
                    raise
                if first > before:
                    patience = Patience(self.policy, self.files.renew)
                if self.stop.wait(patience.pause(error)):
                    raise Stopped from error
                continue
            num_empty += first == before
            if num_empty == 2:
                reason = f"{end - first} bytes from {first} on do not arrive, twice"
                raise CorruptShardError(f"gs://{self.path}", first, 0, reason)

    def _answer(self, first: int, end: int) -> Iterator[int]:
        """Ask for a range; yields the sizes of the pieces as they are written."""
        from gcsfs.retry import validate_response

        url = self.files.url(self.path) + (f"&ifGenerationMatch={self.generation}" if self.generation else "")
        wanted = {
            "Range": f"bytes={first}-{end - 1}",
            "Accept-Encoding": "gzip",
        }  # as it is stored: nothing is unpacked
        answer = _ask(url, self.files._get_headers(wanted), self.policy.request_seconds)
        try:
            if answer.status == 412:
                raise ChangedBytesError("another generation of it is there")
            if answer.status != 206:
                validate_response(answer.status, answer.read(_BUFFER_BYTES), self.path)
                raise ValueError("the store does not know ranges")
            yield from self._write(answer, first)
        finally:
            if not answer.isclosed():  # the rest is on its way, or will never come
                _forget(url)

    def _write(self, answer: http.client.HTTPResponse, first: int) -> Iterator[int]:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        while size := answer.readinto(buffer):
            if self.stop.is_set():
                raise Stopped
            written = 0
            while written < size:  # a disk that fills up takes a part, then says so
                written += os.pwrite(self.descriptor, buffer[written:size], first + written)
            first += size
            yield size
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)


_connections = threading.local()
"""Host -> connection of this thread, kept alive between ranges."""


def _ask(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    """The head of an answer. Raises ConnectionError, TimeoutError and HTTPException."""
    parts = urlsplit(url)
    known, address = _connections.__dict__, _address(url)
    reused = address in known
    if not reused:
        made = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        known[address] = made(parts.netloc, timeout=timeout)
    try:
        known[address].request("GET", f"{parts.path}?{parts.query}", headers=headers)
        return known[address].getresponse()
    except (OSError, http.client.HTTPException) as error:
        _forget(url)
        if reused and isinstance(error, ConnectionError):  # a line that was kept may have been closed meanwhile
            return _ask(url, headers, timeout)
        if not isinstance(error, OSError) or isinstance(error, TimeoutError | ConnectionError | ssl.SSLError):
            raise
        raise ConnectionError(str(error)) from error


def _address(url: str) -> str:
    return "://".join(urlsplit(url)[:2])


def _forget(url: str) -> None:
    """Close the connection of this thread."""
    if (connection := _connections.__dict__.pop(_address(url), None)) is not None:
        connection.close()


class _Pool:
    """Daemon threads, so that a process ends without waiting for what is on its way; they come and go as needed."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._num_threads = self._num_idle = 0

    def submit(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.put(job)
            if self._num_threads < NUM_PARALLEL and self._num_idle < self._jobs.qsize():
                self._num_threads += 1
                threading.Thread(target=self._work, name="range", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._num_idle += 1
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    self._num_idle -= 1
                    if self._jobs.qsize():
                        continue
                    self._num_threads -= 1
                for url in list(_connections.__dict__):
                    _forget(url)
                return
            with self._lock:
                self._num_idle -= 1
            job()


_pool = _Pool()


def run_all(jobs: Sequence[Callable[[], None]], stop: Stop) -> None:
    """Run jobs in the threads of all downloads of this process, in their order. The first error ends them all.

    `stop`: set it to end them; then Stopped is raised.
    """
    finished: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(job: Callable[[], None]) -> None:
        try:
            if stop.is_set():
                raise Stopped
            job()
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            finished.put(error)
        else:
            finished.put(None)

    for job in jobs:
        _pool.submit(lambda job=job: run(job))  # type: ignore[misc]
    first: BaseException | None = None
    try:
        for _ in jobs:
            error = finished.get()
            if error is not None and (first is None or isinstance(first, Stopped)):
                first = error
                stop.set()
    except BaseException:  # an interrupt
        stop.set()
        raise
    if first is not None:
        raise first
