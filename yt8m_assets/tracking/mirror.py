"""One run's record on one server: what is there is looked up, what is missing is sent, nothing is sent twice."""

import json
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yt8m_assets.tracking.errors import RunGoneError, describe, is_refusal
from yt8m_assets.tracking.models import LoggedModels
from yt8m_assets.tracking.record import PARENT_TAG, Record, now_milliseconds
from yt8m_assets.tracking.registry import register
from yt8m_assets.tracking.server import Server
from yt8m_assets.tracking.view import NOTE_TAG

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

logger = logging.getLogger(__name__)

RUN_TAG, OWNER_TAG, ALIVE_TAG = "yt8m.run", "yt8m.process", "yt8m.alive"
"""Tags of a run: the token of its record, the process that works on it, and when that was last heard of."""
SILENCE_SECONDS = 180.0
"""A process of another machine that is silent for this long is dead."""
OPEN_RUNS: set[str] = set()
"""Tokens of the runs that this process works on."""
_SYSTEM = "system/"
_MAX_METRICS, _MAX_OTHERS = 800, 100


def own_process() -> str:
    """Machine and process: no other one, of before a reboot or in another container, is written like it."""
    import psutil

    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    machine = [platform.node(), boot.read_text().strip()[:8] if boot.is_file() else ""]
    machine += [os.readlink(namespace)] if namespace.exists() else []
    return f"{'|'.join(machine)} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_alive(run: "Run") -> bool:
    """Whether a process works on the run: on this machine that is seen, of others it is heard."""
    import psutil

    tags = run.data.tags
    machine, _, process = tags.get(OWNER_TAG, "").partition(" ")
    own_machine, _, own = own_process().partition(" ")
    if machine != own_machine:
        return now_milliseconds() - _last_heard(run) < SILENCE_SECONDS * 1000
    if process == own:
        return tags.get(RUN_TAG) in OPEN_RUNS
    number, _, started = process.partition(" ")
    try:
        return f"{psutil.Process(int(number)).create_time():.2f}" == started
    except (psutil.Error, ValueError):
        return False


def _last_heard(run: "Run") -> int:
    """When its process was last heard of, in milliseconds; 0 where nothing, or something odd, is said of that."""
    said = run.data.tags.get(ALIVE_TAG, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else 0


def find_run(server: Server, token: str, *, deleted: bool = False) -> "Run | None":
    """The run of a token; of two that were made at once, the same one for everybody."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    found = server.client().search_runs([server.open_experiment()], f"tags.`{RUN_TAG}` = '{token}'", view)
    return min(found, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def end_dead_runs(server: Server) -> None:
    """Runs whose process died without a word are KILLED, and not running for ever."""
    client = server.client()
    for run in client.search_runs([server.open_experiment()], "attributes.status = 'RUNNING'"):
        if OWNER_TAG in run.data.tags and not is_alive(run):
            client.set_terminated(run.info.run_id, "KILLED", _last_heard(run) or now_milliseconds())


class Mirror:
    """A record's run on a server; raises what MLflow raises, after which a new mirror finds out what has arrived."""

    def __init__(self, server: Server, record: Record, owner: str | None = None) -> None:
        """Find the run, or make it. `owner`: the process that works on it now, and takes the run over."""
        self.server, self.record, self.owner = server, record, owner
        self.client = client = server.client()
        self.changes, self.version, self.uploading = 0, "", False
        run = find_run(server, record.token)
        if run is not None and owner and _is_anothers(run, owner):
            logger.warning("tracking: another process works on run %s; this one becomes its child", run.info.run_id)
            record.fork()
            run = None
        self.run_id = (run or self._create()).info.run_id
        run = client.get_run(self.run_id)
        self.status = run.info.status
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        self._datasets = {(entry.dataset.name, entry.dataset.digest) for entry in inputs}
        self._files: dict[str, dict[str, int | None]] = {}
        names = [name for name in run.data.metrics if not name.startswith(_SYSTEM)]
        self._known = {(name, p.step) for name in names for p in client.get_metric_history(self.run_id, name)}
        self._sent = 0
        self._models_sent: tuple[int, str | None] = (0, None)

    def _create(self) -> "Run":
        self.changes += 1
        record, tags = self.record, {RUN_TAG: self.record.token, **self.record.tags, **self._signs_of_life()}
        if larger := find_run(self.server, record.tags[PARENT_TAG]) if PARENT_TAG in record.tags else None:
            tags["mlflow.parentRunId"] = larger.info.run_id
        if record.parent is not None:
            parent = find_run(self.server, record.parent)
            tags["resumed_from"] = parent.info.run_id if parent else record.parent
            tags |= {"mlflow.parentRunId": parent.info.run_id} if parent else {}
        return self.client.create_run(self.server.open_experiment(), record.started, tags, record.name)

    def _signs_of_life(self) -> dict[str, str]:
        return {OWNER_TAG: self.owner, ALIVE_TAG: str(now_milliseconds())} if self.owner else {}

    def beat(self) -> None:
        """Say that the run's process lives. Where another one has taken the run over, the record becomes its child."""
        owner = self.client.get_run(self.run_id).data.tags.get(OWNER_TAG)
        if owner != self.owner and self._tags.get(OWNER_TAG) == self.owner:
            self.record.fork()
            raise RunGoneError(f"run {self.run_id} was taken over by another process")
        self._log(tags=self._signs_of_life())
        if self.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
            self.status = "RUNNING"

    def push(self, files: Sequence[tuple[Path, str]] = (), model_path: Path | None = None) -> None:
        """Send what is missing: points, parameters, tags, data sets, then files and the registered version."""
        from mlflow.entities import Metric

        points = self.record.points[self._sent :]
        fresh = [Metric(name, value, at, step) for name, step, value, at in points if (name, step) not in self._known]
        params = {name: value for name, value in list(self.record.params.items()) if name not in self._params}
        tags = {"attempt": str(self.record.attempt), **self.record.tags}
        self._log(fresh, params, {name: value for name, value in tags.items() if self._lacks(name, value)})
        self._sent += len(points)
        self._known.update((point.key, point.step) for point in fresh)
        for entry in list(self.record.datasets):
            if (entry["name"], entry["digest"][:36]) not in self._datasets:
                self._log_dataset(entry)
        self.uploading = True
        for path, folder in files:
            self._upload(path, folder)
        with tempfile.TemporaryDirectory() as temporary:
            for name, value in list(self.record.dicts.items()):
                path = Path(temporary, Path(name).name)
                path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str), encoding="utf-8")
                self._upload(path, name.rpartition("/")[0])
        self._push_models(model_path)
        self.uploading = False

    def _push_models(self, model_path: Path | None) -> None:
        """Make the logged models of the checkpoints, and the registered version of the one that is published."""
        record = self.record
        registers = record.model is not None and model_path is not None and not self.version
        if not registers and self._models_sent == (len(record.checkpoints), record.published):
            return
        models = LoggedModels(self.server, self.run_id, record)
        entries = list(record.checkpoints)
        for entry in entries:
            try:
                self.changes += models.push(entry)
            except Exception as error:
                if not self._is_passed_over(error, f"the checkpoint {entry['name']}"):
                    raise
        self.changes += models.mark_published()
        self._models_sent = (len(entries), record.published)
        if registers:
            assert model_path is not None
            self.version, changed = register(self.server, self.run_id, record, model_path, models.published())
            self.changes += changed

    def _lacks(self, name: str, value: str) -> bool:
        """Whether a tag is to be set; a description that a person has written stays."""
        there = self._tags.get(name)
        return there != value and (name != NOTE_TAG or there is None or value.startswith(there))

    def log_system(self, values: dict[str, float]) -> None:
        """Show the machine's load of this moment."""
        from mlflow.entities import Metric

        at = now_milliseconds()
        self._log([Metric(name, value, at, at // 1000) for name, value in values.items()])

    def _log(
        self, metrics: "Sequence[Metric]" = (), params: dict[str, str] | None = None, tags: dict[str, str] | None = None
    ) -> None:
        from mlflow.entities import Param, RunTag

        param_items, tag_items = list((params or {}).items()), list((tags or {}).items())
        while metrics or param_items or tag_items:
            batch = list(metrics[:_MAX_METRICS])
            some_params = [Param(name, value) for name, value in param_items[:_MAX_OTHERS]]
            some_tags = [RunTag(name, value) for name, value in tag_items[:_MAX_OTHERS]]
            try:
                self.client.log_batch(self.run_id, batch, some_params, some_tags)
            except Exception as error:
                if not self._is_passed_over(error, f"a batch of {len(batch)} metrics"):
                    raise
            self.changes += 1
            metrics, param_items, tag_items = (
                metrics[_MAX_METRICS:], param_items[_MAX_OTHERS:], tag_items[_MAX_OTHERS:],
            )  # fmt: skip
        self._params |= params or {}
        self._tags |= tags or {}

    def _is_passed_over(self, error: Exception, what: str) -> bool:
        """Whether this will never be accepted, which is logged. Raises RunGoneError where the run itself is no more."""
        if not is_refusal(error):
            return False
        try:
            lives = self.client.get_run(self.run_id).info.lifecycle_stage == "active"
        except Exception as second:
            if not is_refusal(second):
                raise
            lives = False
        if not lives:
            raise RunGoneError(f"run {self.run_id} is deleted") from error
        logger.warning("tracking: MLflow refuses %s (%s); left out", what, describe(error))
        return True

    def _log_dataset(self, entry: dict[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(entry["name"][:500], entry["digest"][:36], "uri", json.dumps({"uri": entry["source_uri"]}))
        context = [InputTag("mlflow.data.context", entry["context"])]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, context)])
        self._datasets.add((entry["name"], entry["digest"][:36]))
        self.changes += 1

    def _upload(self, path: Path, folder: str) -> None:
        """Upload a file unless one of its name and size is there: a torn one is sent again."""
        if folder not in self._files:
            listed = self.client.list_artifacts(self.run_id, folder or None)
            self._files[folder] = {Path(entry.path).name: entry.file_size for entry in listed if not entry.is_dir}
        try:
            size = path.stat().st_size
            if self._files[folder].get(path.name) != size:
                self.client.log_artifact(self.run_id, str(path), folder or None)
                self._files[folder][path.name] = size
                self.changes += 1
        except FileNotFoundError as error:
            logger.warning("tracking: %s is gone; left out", error.filename)
        except Exception as error:
            if not self._is_passed_over(error, path.name):
                raise

    def end(self, status: str) -> None:
        """Set the final status."""
        if self.status != status:
            self.client.set_terminated(self.run_id, status, self.record.ended or now_milliseconds())
            self.status = status
            self.changes += 1


def _is_anothers(run: "Run", owner: str) -> bool:
    return run.info.status == "RUNNING" and run.data.tags.get(OWNER_TAG) != owner and is_alive(run)
