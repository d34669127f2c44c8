"""A pass over the graph: `yt8m ...` in a process of its own, which can be held at any of its operations on files.

Processes are forked from one that has imported everything, which saves them five seconds each.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Reply = dict[str, float]
"""What a held process is told: the `signal` that it gets `after` so many seconds; the seconds its `clock` jumps by; how
many operations later it is to be held the `next` time."""
Strike = Callable[["Pass"], Iterator[Reply]]
"""What happens while a process is held, its reply, and what happens when that process has ended."""

_EVENTS = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_COPIED = "/code/"
"""In paths of what MLflow copies of the project with each model: hundreds of files that say nothing."""


class Watch:
    """Counts the operations of a process below a folder, and stops at one of them until the parent replies."""

    def __init__(self, below: str, at: int, told: int, answer: int) -> None:
        self.below, self.at, self.told, self.answer = below, at, told, answer
        self.count, self.jump, self.time = 0, 0.0, time.time

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's audit hook."""
        if event not in _EVENTS:
            if event != "open" or not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if not str(arguments[0]).startswith(self.below) or _COPIED in str(arguments[0]):
                return
        self.operation()

    def operation(self) -> None:
        """One more."""
        self.count += 1
        if self.count != self.at:
            return
        os.write(self.told, b"!")
        self.obey(json.loads(os.read(self.answer, 1000)))

    def obey(self, reply: Reply) -> None:
        """Go on, as told."""
        self.at = self.count + int(reply["next"]) if "next" in reply else 0
        if "signal" in reply:
            send = lambda: os.kill(os.getpid(), int(reply["signal"]))  # noqa: E731
            timer = threading.Timer(reply.get("after", 0.0), send)
            timer.daemon = True
            timer.start()
        if "clock" in reply:
            time.time = lambda: self.time() + reply["clock"]
            time.time_ns = lambda: int(time.time() * 1e9)


@dataclass
class Pass:
    """A process that runs, or has run."""

    pid: int
    told: int
    answer: int
    output: int
    text: str = ""
    """What it said so far."""
    code: int | None = None
    """Exit code; negative: the signal that ended it."""
    hung: bool = False
    """Whether it had to be ended because it took too long."""
    operations: int = 0
    """How many it did, if it ended by itself."""

    @property
    def message(self) -> str:
        """The error it ended with; empty where there was none."""
        place = max(self.text.rfind("yt8m: "), self.text.rfind("Traceback (most recent"))
        return self.text[place:].strip() if self.code and place >= 0 else ""

    @property
    def unnamed(self) -> bool:
        """Whether it ended by an error that says neither what is wrong nor what to do."""
        return bool(self.code and self.code > 0) and (
            not self.message or self.message.startswith(("yt8m: unexp", "Tr"))
        )

    def wait(self, strike: Strike | None = None, seconds: float = 180.0) -> "Pass":
        """Wait for its end, and strike when it is held."""
        deadline, open_ends = time.monotonic() + seconds, list[Iterator[Reply]]()
        while self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            ready, _, _ = select.select([self.told, self.output], [], [], 0 if done else 0.05)
            word = os.read(self.told, 1000) if self.told in ready else b""
            if self.output in ready:
                self.text += os.read(self.output, 2**20).decode(errors="replace")
            if word.startswith(b"!") and strike is not None and not done:
                open_ends.append(strike(self))
                reply = next(open_ends[-1])
                with contextlib.suppress(BrokenPipeError):  # it has been killed
                    os.write(self.answer, json.dumps(reply).encode())
            elif word and not word.startswith(b"!"):
                self.operations = int(word)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline and not self.hung:
                self.hung = True
                os.kill(self.pid, signal.SIGKILL)
        for descriptor in (self.told, self.answer, self.output):
            os.close(descriptor)
        for end in open_ends:
            next(end, None)
        return self


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    below: Path,
    at: int = 0,
    plant: Callable[[], None] = lambda: None,
) -> Pass:
    """Start `yt8m` with these arguments; it is held at its `at`-th operation below a folder.

    plant: called in the process first; a defect that the campaign is to find.
    """
    told, answer = os.pipe(), os.pipe()
    said = os.pipe()  # a file would feel the full disk
    fcntl.fcntl(said[1], fcntl.F_SETPIPE_SZ, 2**20)
    pid = os.fork()
    if pid:
        for descriptor in (told[1], answer[0], said[1]):
            os.close(descriptor)
        return Pass(pid, told[0], answer[1], said[0])
    code = 70
    try:
        os.setsid()
        for descriptor in (told[0], answer[1], said[0]):
            os.close(descriptor)
        code = _run(arguments, environment, Watch(str(below), at, told[1], answer[0]), said[1], plant)
    finally:
        os._exit(code)


def _run(
    arguments: Sequence[str], environment: Mapping[str, str], watch: Watch, output: int, plant: Callable[[], None]
) -> int:
    """In the new process."""
    for target, source in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name in ("DAGSTER_HOME", "STORAGE_EMULATOR_HOST", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    import matplotlib.figure

    from orchestration import cli

    matplotlib.figure.Figure.savefig = _draw_nothing  # type: ignore[assignment]
    plant()
    sys.addaudithook(watch)
    _count_requests(watch)
    code = 70
    try:
        code = cli.main(arguments)
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(watch.told, str(watch.count).encode())
    return code


def _draw_nothing(figure: Any, target: Any, **_: Any) -> None:
    """A picture takes longer than the training that it shows, and is nothing that can be lost."""
    target.write(b"picture") if hasattr(target, "write") else Path(target).write_bytes(b"picture")


def _count_requests(watch: Watch) -> None:
    """Requests to a bucket are operations, too."""
    from yt8m_assets.storage.remote import RemoteFiles

    call = RemoteFiles._call

    def counted(files: RemoteFiles, path: str, permission: str, action: Any) -> Any:
        watch.operation()
        return call(files, path, permission, action)

    RemoteFiles._call = counted  # type: ignore[assignment]
