"""Death at any file operation: from the n-th on, nothing that a process does reaches the disk or the bucket."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from yt8m_assets.storage.remote import RemoteFiles

_EVENTS = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.copyfile")


class Crash(BaseException):
    """The process died here; no handler of errors may survive it."""


class _Crasher:
    """Counts the operations of one thread below one folder, and on buckets."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.thread = 0
        self.below = ""

    def step(self) -> None:
        if self.left is None or threading.get_ident() != self.thread:
            return
        if self.left <= 0:
            raise Crash
        self.left -= 1

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.left is None:
            return
        if event in _EVENTS or (event == "open" and str(arguments[0]).startswith(self.below)):
            self.step()


_crasher = _Crasher()
sys.addaudithook(_crasher.audit)


@contextmanager
def dying_after(operations: int, below: Path) -> Iterator[Callable[[], bool]]:
    """Run a block whose process dies after so many operations; yields whether it has died, to be asked afterwards."""
    call = RemoteFiles._call
    died = False

    def counted(files: RemoteFiles, path: str, permission: str, action: Any) -> Any:
        _crasher.step()  # died before it was asked
        result = call(files, path, permission, action)
        _crasher.step()  # or before the answer came
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFiles, "_call", counted)
        _crasher.left, _crasher.thread, _crasher.below = operations, threading.get_ident(), str(below)
        try:
            yield lambda: died
        except Crash:
            died = True
        finally:
            _crasher.left = None
