"""A bucket with a real one's latency and bandwidth, in a process of its own, which counts what is asked of it.

    with slow_bucket(latency_ms=60, mb_per_second=200) as bucket:     # STORAGE_EMULATOR_HOST is set within the block
        bucket.load(folder, "yt/2")                                   # gs://yt/2/...; programs may write there, too
        bucket.reset(); ...; bucket.counts().bytes

All readers together get the bandwidth; every request waits for the latency first. Objects are kept in memory.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.storage.fake_store import FakeStore

_BLOCK = 2**18
_HOLD_SECONDS = 100.0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What was asked of the bucket."""

    lists: int = 0
    """Pages of listings."""
    stats: int = 0
    """Questions for one object's size and checksum."""
    reads: int = 0
    """Requests for bytes."""
    writes: int = 0
    """Uploads and deletions."""
    bytes: int = 0
    """Bytes that were read."""
    max_open: int = 0
    """Requests that were under way at the same time, at most."""

    @property
    def asked(self) -> int:
        """Requests besides reads."""
        return self.lists + self.stats + self.writes


class SlowStore(FakeStore):
    """The stand-in behind a latency and a common bandwidth."""

    def __init__(self, latency_seconds: float, bytes_per_second: float) -> None:
        self.latency_seconds, self.bytes_per_second = latency_seconds, bytes_per_second
        self.counts: dict[str, int] = {}
        self.open, self.held = 0, ""
        self._free_at = 0.0
        self._described: dict[str, tuple[int, dict[str, Any]]] = {}
        self._written: dict[str, int] = {}
        self._counting = threading.Lock()
        super().__init__()

    def handle(self, handler: Any, method: str) -> None:
        """Count, wait, answer; `/_...` are questions about the bucket itself."""
        if handler.path.startswith("/_"):
            self._answer(handler)
            return
        with self._counting:
            self.open += 1
            self.counts["max_open"] = max(self.counts.get("max_open", 0), self.open)
            kind = "reads" if "alt=media" in handler.path else "lists" if "/o?" in handler.path else "stats"
            kind = kind if method == "GET" else "writes"
            self.counts[kind] = self.counts.get(kind, 0) + 1
        try:
            time.sleep(self.latency_seconds)
            until = time.monotonic() + _HOLD_SECONDS
            while self.held and self.held in handler.path and time.monotonic() < until:
                time.sleep(0.02)
            super().handle(handler, method)
        finally:
            with self._counting:
                self.open -= 1

    def _answer(self, handler: Any) -> None:
        """`/_counts`, `/_reset`, `/_pace?MILLISECONDS`, `/_hold?NAME`, `/_load?PREFIX?FOLDER`."""
        what, *rest = handler.path[2:].split("?")
        if what == "pace":
            self.latency_seconds = float(rest[0]) / 1000
        if what == "hold":
            self.held = rest[0]
        if what == "reset":
            self.counts = {}
        if what == "load":
            folder = Path(rest[1])
            for path in (path for path in folder.rglob("*") if path.is_file()):
                self.put(f"{rest[0]}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        self._json(handler, 200, self.counts)

    def _describe(self, name: str) -> dict[str, Any]:
        """As the stand-in, each content looked at once and with a generation of its own."""
        content = self.objects[name]
        known = self._described.get(name)
        if known is None or known[0] != id(content):
            self._written[name] = self._written.get(name, 0) + 1
            known = self._described[name] = (id(content), super()._describe(name))
        return known[1] | {"generation": str(self._written[name])}

    def _media(self, handler: Any, name: str, fault: Any) -> None:
        if name not in self.objects:
            self._json(handler, 404, {"error": {"code": 404}})
            return
        content, status = memoryview(self.objects[name]), 200
        if "Range" in handler.headers:
            first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for place in range(0, len(content), _BLOCK):
            block = content[place : place + _BLOCK]
            with self._counting:
                self.counts["bytes"] = self.counts.get("bytes", 0) + len(block)
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + len(block) / self.bytes_per_second
                wait = self._free_at - now
            time.sleep(max(wait, 0))
            handler.wfile.write(block)


@dataclass(frozen=True)
class SlowBucket:
    """The bucket as a test sees it."""

    url: str
    """What STORAGE_EMULATOR_HOST is to be set to."""

    def _ask(self, question: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/_{question}", timeout=60) as answer:
            return json.loads(answer.read())

    def load(self, folder: Path, prefix: str) -> str:
        """Put the files below a folder there; the URI that they lie below."""
        self._ask(f"load?{prefix}?{folder}")
        return f"gs://{prefix}"

    def pace(self, latency_ms: float) -> None:
        """Let every request wait for so long from now on."""
        self._ask(f"pace?{latency_ms}")

    def hold(self, name: str = "") -> None:
        """Answer nothing about objects with this in their name, until it is called again."""
        self._ask(f"hold?{name}")

    def reset(self) -> None:
        """Count from zero."""
        self._ask("reset")

    def counts(self) -> Counts:
        """What was asked since."""
        return Counts(**self._ask("counts"))


@contextmanager
def slow_bucket(latency_ms: float = 0.0, mb_per_second: float = 1e6) -> Iterator[SlowBucket]:
    """A bucket that lives as long as the block; the block's programs find it by STORAGE_EMULATOR_HOST."""
    command = [sys.executable, "-m", "tests.slow_bucket", "--latency-ms", str(latency_ms)]
    command += ["--mb-per-second", str(mb_per_second)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    before = os.environ.get("STORAGE_EMULATOR_HOST")
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        os.environ["STORAGE_EMULATOR_HOST"] = url
        yield SlowBucket(url)
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST")
        if before is not None:
            os.environ["STORAGE_EMULATOR_HOST"] = before
        process.kill()
        process.communicate()


def main() -> None:
    """Serve until stdin is closed: no longer than the process that started this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--mb-per-second", type=float, default=1e6)
    options = parser.parse_args()
    store = SlowStore(options.latency_ms / 1000, options.mb_per_second * 1e6)
    sys.stdout.write(f"{store.url}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
