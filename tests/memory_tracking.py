"""Tracking that keeps every run in memory, to be looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yt8m_assets.tracking import TrackedRun, Tracking
from yt8m_assets.tracking.protocol import status_of
from yt8m_assets.tracking.record import Record


class MemoryRun(TrackedRun):
    """A run whose content can be looked at."""

    def __init__(self, record: Record, run_id: str) -> None:
        super().__init__(record)
        self.run_id, self.status = run_id, "RUNNING"
        self.registered: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def kind(self) -> str:
        return self.record.tags["kind"]

    @property
    def params(self) -> dict[str, str]:
        return self.record.params

    @property
    def tags(self) -> dict[str, str]:
        return self.record.tags

    @property
    def attempt(self) -> int:
        return self.record.attempt

    @property
    def dicts(self) -> dict[str, Any]:
        return self.record.dicts

    @property
    def datasets(self) -> list[dict[str, str]]:
        return self.record.datasets

    @property
    def metrics(self) -> list[tuple[str, float, int]]:
        """(metric, value, step) in order of arrival."""
        return [(name, value, step) for name, step, value, _ in self.record.points]

    @property
    def artifacts(self) -> list[tuple[str, str]]:
        """(folder, file name)."""
        return [(folder, path.name) for path, folder in self.paths]

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        super().register_model(name, folder, metric=metric, description=description)
        self.registered.append({"name": name, "folder": folder, "metric": metric, "description": description})
        return str(len(self.registered))

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric in order of arrival."""
        return [(step, value) for metric, value, step in self.metrics if metric == name]


class MemoryTracking(Tracking):
    """Keeps every run in `runs`; one that is continued stays one."""

    def __init__(self) -> None:
        self.runs: list[MemoryRun] = []

    @contextmanager
    def show(self, record: Record) -> Iterator[MemoryRun]:
        places = {run.record.token: place for place, run in enumerate(self.runs)}
        place = places.get(record.token, len(self.runs))
        run = MemoryRun(record, f"memory-{place + 1}")
        self.runs[place:] = [run, *self.runs[place + 1 :]]
        try:
            yield run
        except BaseException as error:
            run.status = status_of(error)
            raise
        run.status = "FINISHED"
