"""A run's journal on local disk: what is to be sent to the tracking server, and how much of it has arrived.

    <spool>/<name>/journal.jsonl   one operation a line, in order
    <spool>/<name>/state.json      how many operations have been sent, and the run's id on the server
    <spool>/<name>/files/<n>/...   files to upload: links or copies, so that the originals may move

Operations are written before they are sent and the journal disappears when all have been: what a crash or a dead server
leaves behind is sent by the next process that opens the spool.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)
_JOURNAL, _STATE, _LOCK, _FILES = "journal.jsonl", "state.json", "lock", "files"


class Journal:
    """One run's operations; held by one process at a time.

    Raises BlockingIOError while another one holds it, ValueError where its beginning cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = folder.name
        self._lock = (folder / _LOCK).open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise
        self._guard = threading.Lock()
        self.acked, self.run_id = self._read_state()
        try:
            operations = self._read_operations()
        except (OSError, ValueError):
            self._lock.close()
            raise
        self.pending: deque[dict[str, Any]] = deque(operations[self.acked :])
        self.last = operations[-1] if operations else None
        self._count = self.acked + len(self.pending)
        self._file = (folder / _JOURNAL).open("a", encoding="utf-8")
        self._broken = False

    def _read_state(self) -> tuple[int, str | None]:
        path = self.folder / _STATE
        try:
            state = json.loads(path.read_bytes())
            return int(state["acked"]), state["run_id"]
        except (
            FileNotFoundError,
            ValueError,
            LookupError,
            TypeError,
        ):  # lost with the power: all is sent again, what is known is left out
            return 0, None

    def _read_operations(self) -> list[dict[str, Any]]:
        """All whole lines; a line that a crash cut short is dropped from the file, a damaged one does nothing."""
        path = self.folder / _JOURNAL
        if not path.is_file():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)
        operations = [_read_line(line) for line in whole.splitlines()]
        if operations and operations[0]["op"] != "open":
            raise ValueError("its first line opens no run")
        return operations

    def append(self, operation: Mapping[str, Any]) -> int:
        """Write down an operation; its number. A full disk costs the copy on disk, never an error."""
        with self._guard:
            self._write(json.dumps(operation) + "\n")
            self.pending.append(dict(operation))
            self.last = dict(operation)
            self._count += 1
            return self._count - 1

    def _write(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except (OSError, ValueError) as error:
            if not self._broken:
                logger.warning("tracking spool %s cannot be written (%s): metrics stay in memory", self.folder, error)
            self._broken = True

    def head(self, count: int) -> list[dict[str, Any]]:
        """The next operations to send, at most `count`."""
        with self._guard:
            return list(islice(self.pending, count))

    def ack(self, count: int) -> None:
        """The first `count` pending operations have arrived."""
        with self._guard:
            done = [self.pending.popleft() for _ in range(count)]
            self.acked += count
        self._save_state()
        for operation in done:
            for name in operation.get("files", []):
                shutil.rmtree((self.folder / _FILES / name).parent, ignore_errors=True)

    def set_run_id(self, run_id: str) -> None:
        """The run's id on the server."""
        self.run_id = run_id
        self._save_state()

    def _save_state(self) -> None:
        temporary = self.folder / f"{_STATE}.tmp"
        try:
            temporary.write_text(json.dumps({"acked": self.acked, "run_id": self.run_id}), encoding="utf-8")
            temporary.replace(self.folder / _STATE)
        except OSError as error:
            logger.warning("tracking spool %s cannot be written (%s)", self.folder, error)

    def keep(self, path: Path) -> str:
        """Link or copy a file into the journal; its name there (`<token>/<file name>`)."""
        name = f"{secrets.token_hex(6)}/{path.name}"
        target = self.folder / _FILES / name
        target.parent.mkdir(parents=True)
        try:
            os.link(path, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, target)
        return name

    def file(self, name: str) -> Path:
        """Where a kept file lies."""
        return self.folder / _FILES / name

    def release(self) -> None:
        """Leave what is pending on disk for another time."""
        self._file.close()
        self._lock.close()

    def discard(self) -> None:
        """Everything has arrived: remove the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def _read_line(line: bytes) -> dict[str, Any]:
    """The operation of a line; one that cannot be read keeps its place in the count."""
    with suppress(ValueError):
        operation = json.loads(line)
        if isinstance(operation, dict) and isinstance(operation.get("op"), str):
            return operation
    return {"op": "unreadable"}


class Spool:
    """The journals of one tracking server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> Journal:
        """An empty journal under a new name."""
        return Journal(self.folder / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}")

    def open(self, name: str) -> Journal | None:
        """A journal left behind, or None if it is gone or held by another process."""
        folder = self.folder / name
        if not (folder / _JOURNAL).is_file():
            return None
        try:
            journal = Journal(folder)
        except BlockingIOError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("tracking: %s: cannot be read (%s); it is set aside, and not sent", folder, error)
            with suppress(OSError):
                (folder / _JOURNAL).rename(folder / f"{_JOURNAL}.unreadable")
            return None
        if journal.last is not None and journal.last["op"] != "close":  # its process is dead: nobody else will
            journal.append({"op": "close", "status": "KILLED", "time": int(time.time() * 1000), "abandoned": True})
        if not journal.pending:  # its owner finished between the look and the lock
            journal.discard()
            return None
        return journal

    def left_behind(self, only: str | None = None) -> Iterator[Journal]:
        """Every journal (or the one named) that no process holds, oldest first."""
        names = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        for name in names if only is None else [only]:
            journal = self.open(name)
            if journal is not None:
                yield journal
