"""Death at any operation: from the n-th on, nothing that a process does reaches the disk, a bucket or a database."""

import builtins
import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from yt8m_assets.storage.remote import RemoteFiles

logger = logging.getLogger(__name__)

_EVENTS = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.copyfile")
_POOL = "ThreadPoolExecutor-"
"""How pools name the threads that nobody else named: their work is that of whoever waits for them."""


class Crash(BaseException):
    """The process died here; no handler of errors may survive it."""


class _Crasher:
    """Counts the operations of one thread and of pools below one folder, on buckets, and of databases."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.struck = False
        self.thread = 0
        self.below = ""

    def step(self) -> None:
        own = threading.get_ident() == self.thread or threading.current_thread().name.startswith(_POOL)
        if self.left is None or not own:
            return
        if self.left <= 0:
            self.struck = True
            raise Crash
        self.left -= 1

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None:
            return
        if event in _EVENTS or (event == "open" and str(arguments[0]).startswith(self.below)):
            self.step()

    def opened(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """`open`, with a death between a file that is made and what is written into it."""
        handle = _open(file, mode, *arguments, **options)
        if self.left is not None and set(mode) & set("wxa+") and str(file).startswith(self.below):
            try:
                self.step()
            except Crash:
                handle.close()
                raise
        return handle


_open = io.open
_crasher = _Crasher()
sys.addaudithook(_crasher.audit)


@contextmanager
def dying_after(operations: int, below: Path) -> Iterator[Callable[[], bool]]:
    """Run a block whose process dies after so many operations; yields whether it has died, to be asked afterwards."""
    call = RemoteFiles._call

    def counted(files: RemoteFiles, path: str, permission: str, action: Any) -> Any:
        _crasher.step()  # died before it was asked
        result = call(files, path, permission, action)
        _crasher.step()  # or before the answer came
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFiles, "_call", counted)
        for module in (builtins, io):
            patch.setattr(module, "open", _crasher.opened)
        _crasher.left, _crasher.struck = operations, False
        _crasher.thread, _crasher.below = threading.get_ident(), str(below)
        try:
            yield lambda: _crasher.struck
        except Crash:
            pass
        finally:
            _crasher.left = None


@contextmanager
def commits_counted() -> Iterator[None]:
    """Let each commit of SQLAlchemy count as an operation: who dies before it has changed nothing."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def commit(connection: Any) -> None:
        _crasher.step()

    event.listen(Engine, "commit", commit)
    try:
        yield
    finally:
        event.remove(Engine, "commit", commit)


def each_death(run: Callable[[int], bool], stride: int = 1) -> int:
    """Die after no operation, after one, ... until `run` gets through, which says whether it died; how many deaths."""
    deaths = next(operations for operations in count(step=stride) if not run(operations))
    logger.info("died at %d operations", -(-deaths // stride))
    return deaths
