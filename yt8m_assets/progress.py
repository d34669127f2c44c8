"""Progress for people: a live line on a terminal, plain lines elsewhere, silence in tests."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Task(Protocol):
    """One running piece of work with a count."""

    def resume(self, count: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def update(self, **fields: Any) -> None: ...


class Progress(Protocol):
    """Where stages say how far they are."""

    def task(self, title: str, total: int | None = None, unit: str = "it") -> Any: ...

    def log(self, text: str) -> None: ...


def format_fields(fields: dict[str, Any]) -> str:
    """`loss 0.312  best MAP 0.801`: floats with four significant digits."""
    shown = (f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
             for name, value in fields.items())  # fmt: skip
    return "  ".join(shown)


def format_seconds(seconds: float) -> str:
    """`1:02:03`, `2:03` or `12 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class NullProgress:
    """Says nothing."""

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "it") -> Iterator[Task]:
        yield Counter()

    def log(self, text: str) -> None:
        """Drop the text."""


class Counter:
    """A task that nobody watches."""

    def __init__(self) -> None:
        self.count = 0
        self.resumed = 0
        self.fields: dict[str, Any] = {}

    def resume(self, count: int) -> None:
        """Go on from a count that was reached earlier, in another process: it is no part of any rate."""
        self.count = self.resumed = count

    def advance(self, count: int = 1) -> None:
        self.count += count

    def update(self, **fields: Any) -> None:
        self.fields.update(fields)


class _TimedTask(Counter):
    """Emits a line at most every `seconds`, and one when the task ends."""

    def __init__(self, emit: Any, title: str, total: int | None, unit: str, seconds: float) -> None:
        super().__init__()
        self.emit, self.title, self.total, self.unit, self.seconds = emit, title, total, unit, seconds
        self.started = self.last = time.monotonic()

    def resume(self, count: int) -> None:
        super().resume(count)
        self.started = self.last = time.monotonic()

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.emit(self.line())

    def line(self) -> str:
        """Title, count, rate, time left, fields."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        rate = (self.count - self.resumed) / elapsed
        of_total = f"/{self.total}" if self.total else ""
        left = f", {format_seconds((self.total - self.count) / rate)} left" if self.total and rate > 0 else ""
        head = f"{self.title}: {self.count}{of_total} {self.unit} ({rate:.3g}/s{left})"
        return f"{head}  {format_fields(self.fields)}" if self.fields else head

    def close(self) -> None:
        elapsed = time.monotonic() - self.started
        fields = f"  {format_fields(self.fields)}" if self.fields else ""
        resumed = f", {self.count - self.resumed} of them" if self.resumed else ""
        self.emit(f"{self.title}: {self.count} {self.unit}{resumed} in {format_seconds(elapsed)}{fields}")


class PlainProgress:
    """Lines for a pipe or a log file: one every ten seconds and one at the end of each task."""

    def __init__(self, stream: Any = None, seconds: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.seconds = seconds

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "it") -> Iterator[Task]:
        task = _TimedTask(self.log, title, total, unit, self.seconds)
        yield task
        task.close()

    def log(self, text: str) -> None:
        """Write one line."""
        self.stream.write(text + "\n")
        self.stream.flush()


class LogProgress(PlainProgress):
    """Lines into a logger (Dagster's run log): one a minute."""

    def __init__(self, log: Any = None, seconds: float = 60.0) -> None:
        super().__init__(seconds=seconds)
        self.logger = log or logger

    def log(self, text: str) -> None:
        """Log one line at level INFO."""
        self.logger.info(text)


class LiveProgress:
    """Bars that redraw themselves, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        self.bars = RichProgress(*columns, refresh_per_second=4)

    @contextmanager
    def task(self, title: str, total: int | None = None, unit: str = "it") -> Iterator[Task]:
        if not self.bars.live.is_started:
            self.bars.start()
        bar = _LiveTask(self.bars, self.bars.add_task(title, total=total, note=""))
        try:
            yield bar
        finally:
            self.bars.stop_task(bar.identifier)
            if all(task.stop_time is not None for task in self.bars.tasks):
                self.bars.stop()  # leaves the finished bars on the screen and starts afresh with the next task
                for identifier in self.bars.task_ids:
                    self.bars.remove_task(identifier)

    def log(self, text: str) -> None:
        """Print one line above the bars."""
        self.bars.console.print(text, highlight=False, markup=False, emoji=False)


class _LiveTask(Counter):
    def __init__(self, bars: Any, identifier: Any) -> None:
        super().__init__()
        self.bars, self.identifier = bars, identifier

    def resume(self, count: int) -> None:
        super().resume(count)
        self.bars.reset(self.identifier, completed=count)  # `update` would take it for a speed

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        self.bars.advance(self.identifier, count)

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        self.bars.update(self.identifier, note=format_fields(self.fields))


def default_progress() -> Progress:
    """Live bars on a terminal, plain lines elsewhere."""
    return LiveProgress() if sys.stderr.isatty() and sys.stdout.isatty() else PlainProgress()
