"""What the core asks of experiment tracking: a small protocol, with a null and an in-memory implementation.

`MlflowTracking` (tracking/live.py) is the real one; it imports MLflow only when a run starts.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from yt8m_assets.tracking.live import MlflowTracking, public_uri, status_of
from yt8m_assets.tracking.view import EXPERIMENT

__all__ = [
    "EXPERIMENT", "MemoryRun", "MemoryTracking", "MlflowTracking", "NullTracking", "TrackedRun", "Tracking",
    "public_uri",
]  # fmt: skip


class TrackedRun(Protocol):
    """One open run. No call raises because of the tracking server, and none blocks longer than the budget."""

    @property
    def run_id(self) -> str | None:
        """Names the run when it is resumed (`resume_id`); None where nothing is tracked."""

    @property
    def url(self) -> str | None:
        """Page of the run in the MLflow UI, if there is one."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point per metric. A step that a metric has already is left as it is."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters that are known only later, such as what a search has found; a value given before stays."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of all files of a folder, below `folder`."""

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Keep a JSON value as a file."""

    def log_dataset(self, name: str, *, digest: str, source_uri: str, context: str) -> None:
        """Say which data the run used: `context` is training, holdout or test."""

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Register a model folder as a new version of `name`; its number, or None while it is not known.

        The alias `champion` moves to it if `metric` is better than the present champion's.
        """


class Tracking(Protocol):
    """Opens runs."""

    def run(
        self,
        name: str,
        *,
        kind: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> AbstractContextManager[TrackedRun]:
        """A run for the length of a `with` block; an exception marks it failed, a preemption or interrupt killed.

        `kind` and `model` become tags. `resume_id` continues a run after an interruption; with other parameters than
        it had, a child run is opened instead.
        """


class NullRun:
    """Tracks nothing."""

    run_id: str | None = None
    url: str | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Drop the metrics."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Drop the parameters."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Drop the tags."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Drop the file."""

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Drop the value."""

    def log_dataset(self, name: str, *, digest: str, source_uri: str, context: str) -> None:
        """Drop the data set."""

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Register nothing."""
        return None


class NullTracking:
    """For runs that nobody wants to see again."""

    @contextmanager
    def run(
        self,
        name: str,
        *,
        kind: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> Iterator[TrackedRun]:
        """Open a run that drops everything."""
        yield NullRun()


@dataclass
class MemoryRun:
    """A run whose content can be looked at."""

    name: str
    kind: str
    model: str | None
    params: dict[str, Any]
    tags: dict[str, str]
    run_id: str
    url: str | None = None
    status: str = "RUNNING"
    attempt: int = 1
    parent_id: str | None = None
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    artifacts: list[tuple[str, str]] = field(default_factory=list)
    dicts: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)
    registered: list[dict[str, Any]] = field(default_factory=list)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep the points that are new."""
        known = {(name, at) for name, _, at in self.metrics}
        self.metrics += [(name, float(value), step) for name, value in metrics.items() if (name, step) not in known]

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep the parameters that are new."""
        self.params = {**params, **self.params}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep the tags."""
        self.tags.update(tags)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep the file's folder and name."""
        self.artifacts.append((folder, path.name))

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Keep the value."""
        self.dicts[name] = dict(value)

    def log_dataset(self, name: str, *, digest: str, source_uri: str, context: str) -> None:
        """Keep the data set's description."""
        self.datasets.append({"name": name, "digest": digest, "source_uri": source_uri, "context": context})

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Keep name and metric; versions count from 1 within the run."""
        self.registered.append({"name": name, "folder": folder, "metric": metric, "description": description})
        return str(len(self.registered))

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric in order of arrival."""
        return [(step, value) for metric, value, step in self.metrics if metric == name]


class MemoryTracking:
    """Keeps every run in `runs`, for tests."""

    def __init__(self) -> None:
        self.runs: list[MemoryRun] = []

    @contextmanager
    def run(
        self,
        name: str,
        *,
        kind: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> Iterator[TrackedRun]:
        """Open a run, or continue the one named by `resume_id` if its parameters are the same."""
        before = next((run for run in self.runs if run.run_id == resume_id), None)
        given = dict(params or {})
        if before is not None and all(before.params.get(name, value) == value for name, value in given.items()):
            run = before
            run.attempt += 1
            run.tags.update(tags or {})
        else:
            run = MemoryRun(name, kind, model, dict(params or {}), dict(tags or {}), f"memory-{len(self.runs) + 1}")
            run.parent_id = before.run_id if before is not None else None
            self.runs.append(run)
        run.status = "RUNNING"
        try:
            yield run
        except BaseException as error:
            run.status = status_of(error)
            raise
        run.status = "FINISHED"
