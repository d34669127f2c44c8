"""What the core asks of experiment tracking, and a run that is recorded and sent nowhere."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from yt8m_assets.tracking.record import (
    RECORD_FILE,
    Record,
    now_milliseconds,
    open_record,
    param_texts,
    split_finite,
    tag_texts,
)
from yt8m_assets.tracking.view import NOTE_TAG

TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow looks for the tables among a run's files."""


class TrackedRun:
    """One open run: a record of what it is told. What is derived from it shows the record on a server.

    No call raises because of a server, and a server costs a run a budget of seconds in total.
    """

    run_id: str | None = None
    """Names the run on the server; None while no server knows it."""
    url: str | None = None
    """Page of the run in the MLflow UI, if there is one."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.paths: list[tuple[Path, str]] = []
        """Files to keep, and the folder of the run for each."""
        self.model_path: Path | None = None
        """Folder of the model to register."""
        self._steps = {(name, step) for name, step, _, _ in record.points}
        self._note = record.tags.get(NOTE_TAG, "")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point per metric; what is not finite becomes a tag. A step that a metric has already stays."""
        finite, tags = split_finite(metrics, int(step))
        new = {name: value for name, value in finite.items() if (name, int(step)) not in self._steps}
        self._steps.update((name, int(step)) for name in new)
        self.record.points += [(name, int(step), value, now_milliseconds()) for name, value in new.items()]
        self.set_tags(tags)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters that are known only later, such as what a search has found; a value given before stays."""
        self.record.params = {**param_texts(params), **self.record.params}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        self.record.tags |= tag_texts(tags)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of all files of a folder, below `folder`; it lies there until the run ends."""
        if not path.is_dir():
            self.paths.append((path, folder))
            return
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            below = file.parent.relative_to(path).as_posix()
            self.paths.append((file, "/".join(part for part in (folder, below) if part not in ("", "."))))

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Keep a JSON value as a file."""
        self.record.dicts[name] = dict(value)

    def log_table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> None:
        """Keep a table as a file `NAME.json` that MLflow shows as one, and compares between runs."""
        self.record.dicts[name] = {"columns": list(columns), "data": [list(row) for row in rows]}
        tables, table = json.loads(self.record.tags.get(TABLES_TAG, "[]")), {"path": name, "type": "table"}
        if table not in tables:
            self.set_tags({TABLES_TAG: json.dumps([*tables, table])})

    def log_dataset(self, name: str, *, digest: str, source_uri: str, context: str) -> None:
        """Say which data the run used: `context` is training, holdout or test."""
        entry = {"name": name, "digest": digest, "source_uri": source_uri, "context": context}
        if entry not in self.record.datasets:
            self.record.datasets.append(entry)

    def log_checkpoint(self, name: str, step: int, metrics: Mapping[str, float], *, published: bool = False) -> None:
        """Say that weights were kept, and their scores `holdout/...` and `test/...`; a name given before stays.

        `published`: the artifact holds these weights.
        """
        if name not in {entry["name"] for entry in self.record.checkpoints}:
            finite, _ = split_finite(metrics, step)
            self.record.checkpoints.append({"name": name, "step": int(step), "metrics": finite})
        if published:
            self.record.published = name

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Register a model folder as a new version of `name`; its number, or None while it is not known.

        The alias `champion` moves to it if `metric` is better than the present champion's.
        """
        if description:
            self.set_tags({NOTE_TAG: f"{self._note}\n\n{description}".strip()})
        self.model_path = folder
        self.record.model = {"name": name, "metric": float(metric), "description": description}
        return None

    def state(self) -> dict[str, Any]:
        """The record of this moment as JSON values, for a checkpoint; `Tracking.run(resume=...)` goes on from it."""
        return self.record.to_json()

    def keep(self, artifact_path: Path, *, last: bool = True) -> None:
        """Write the record into the folder of an artifact that is about to be published.

        The files given to `log_artifact` so far must lie there. `last`: the run has done what it is for.
        """
        if last:
            self.record.ended = now_milliseconds()
        names = [(path.relative_to(artifact_path).as_posix(), folder) for path, folder in self.paths]
        self.record.files = [(name, folder) for name, folder in names if name != RECORD_FILE]
        self.record.write(artifact_path)


class NullRun(TrackedRun):
    """A run that nobody wants to see."""

    def __init__(self) -> None:
        super().__init__(open_record("untracked", "none", None, None, None, None))


class Tracking(ABC):
    """Opens runs."""

    def run(
        self,
        name: str,
        *,
        kind: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[TrackedRun]:
        """A run for the length of a `with` block; an exception marks it failed, a preemption or interrupt killed.

        `kind` and `model` become tags. `resume`, the `state` of an earlier run, continues that one after an
        interruption; with other parameters than it had, a child run is opened instead.
        """
        return self.show(open_record(name, kind, model, params, tags, resume))

    @abstractmethod
    def show(self, record: Record) -> AbstractContextManager[TrackedRun]:
        """The run of a record, new or continued."""


class NullTracking(Tracking):
    """For runs that nobody wants to see now; what they say is recorded all the same."""

    @contextmanager
    def show(self, record: Record) -> Iterator[TrackedRun]:
        """A run that is sent nowhere."""
        yield TrackedRun(record)


def status_of(error: BaseException) -> str:
    """MLflow's status of a run that an exception ended: KILLED for an interrupt or a preemption, FAILED otherwise,
    if the exception names none (`tracked_status`).

    A preemption has an exit code of its own (training/interruption.py); interrupts are not Exceptions.
    """
    asked_to_stop = not isinstance(error, Exception) or getattr(error, "exit_code", None) is not None
    return getattr(error, "tracked_status", "KILLED" if asked_to_stop else "FAILED")
