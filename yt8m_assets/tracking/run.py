"""One open run in MLflow: what it is told goes to a journal on disk, and a thread sends it from there."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.tracking.errors import DeletedExperimentError, describe, is_unauthorised
from yt8m_assets.tracking.mirror import MAX_PARAM, MAX_TAG, SPOOLED, Sender, mlflow_name, split_finite
from yt8m_assets.tracking.spool import Journal
from yt8m_assets.tracking.system import system_metrics
from yt8m_assets.tracking.view import NOTE_TAG

if TYPE_CHECKING:
    from yt8m_assets.tracking.live import MlflowTracking

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
SYSTEM_SECONDS = 10.0
_RETRY_SECONDS = (2.0, 5.0, 15.0, 30.0)
_LOCAL_RETRY_SECONDS = (0.3, 0.6, 1.2, 2.4, 5.0)
_LOCAL_TRIES = 5
"""A local database that another process has locked comes back by itself; after these tries it counts as gone."""


def now_milliseconds() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


class MlflowRun:
    """An open run; its thread ends when everything has arrived, or when the server is gone and the run is closed."""

    def __init__(self, tracking: "MlflowTracking", journal: Journal, tags: Mapping[str, str]) -> None:
        self.tracking, self.journal = tracking, journal
        self._note = tags.get(NOTE_TAG, "")
        self._version_tags = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
        self._reported = False
        self.sender: Sender | None = None
        self.offline = False
        self.untracked = False
        self._closing = False
        self._spent = 0.0
        self._moved = time.monotonic()
        self._sampled = time.monotonic()
        self._wake, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracking-{journal.name}", daemon=True)
        self._wake.set()
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The run's id on the server; `spooled-...` while the server does not know it."""
        return self.journal.run_id or f"{SPOOLED}{self.journal.name}"

    @property
    def url(self) -> str | None:
        """Page of the run."""
        experiment_id, base = self.tracking.experiment_id, self.tracking.ui_url
        if not (experiment_id and base and self.journal.run_id):
            return None
        # without the workflow, MLflow keeps the one last looked at, and that begins as the one for language models
        return f"{base}/#/experiments/{experiment_id}/runs/{self.journal.run_id}?workflowType=machine_learning"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point per metric; what is not finite becomes a tag."""
        finite, tags = split_finite(metrics, int(step))
        if finite:
            self.journal.append({"op": "metrics", "values": finite, "step": int(step), "time": now_milliseconds()})
        if tags:
            self.set_tags(tags)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters; a value given before stays."""
        values = {mlflow_name(name): str(value)[:MAX_PARAM] for name, value in params.items()}
        self.journal.append({"op": "params", "values": values})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        values = {mlflow_name(name): str(value)[:MAX_TAG] for name, value in tags.items()}
        self.journal.append({"op": "tags", "values": values})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of all files of a folder, and upload it."""
        self._keep_files(path, folder, {"op": "artifact"})

    def log_dict(self, value: Mapping[str, Any], name: str) -> None:
        """Upload a JSON value as a file."""
        path = self.journal.folder / name.rsplit("/", 1)[-1]
        path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str), encoding="utf-8")
        self.log_artifact(path, name.rpartition("/")[0])
        path.unlink()

    def log_dataset(self, name: str, *, digest: str, source_uri: str, context: str) -> None:
        """Say which data the run used."""
        operation = {"name": name, "digest": digest, "source_uri": source_uri, "context": context}
        self.journal.append({"op": "dataset", **operation})

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Register a version of a model; its number, or None while the server has not answered."""
        if description:
            self.set_tags({NOTE_TAG: f"{self._note}\n\n{description}".strip()})
        operation = {"op": "register", "name": name, "metric": float(metric), "description": description}
        number = self._keep_files(folder, "", {**operation, "tags": self._version_tags})
        self._wake.set()
        self._wait(lambda: number is None or self._result(number) is not None or self.journal.acked > number)
        return None if number is None else self._result(number)

    def _result(self, number: int) -> str | None:
        return self.sender.results.get(number) if self.sender else None

    def _keep_files(self, path: Path, folder: str, operation: dict[str, Any]) -> int | None:
        """Link the files into the journal and write the operation; a full disk costs the upload, not the run."""
        try:
            paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            kept = [self.journal.keep(p) for p in paths]
        except OSError as error:
            logger.warning("tracking: %s cannot be kept for upload (%s)", path.name, error)
            return None
        below = [p.parent.relative_to(path).as_posix() if path.is_dir() else "." for p in paths]
        folders = ["/".join(part for part in (folder, name) if part not in ("", ".")) for name in below]
        return self.journal.append({**operation, "files": kept, "folders": folders})

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready`, the server is found gone, or the run's budget is spent; uploads that move are free."""
        budget = self.tracking.patience_seconds
        while not ready():
            gone = (
                self.offline and not self._closing
            )  # a closed run is done once its journal is free for the next process
            if gone or self._done.is_set() or self._spent > budget:
                return False
            time.sleep(0.02)
            if not (self.sender and self.sender.uploading):
                self._spent += 0.02
        return True

    def wait_until_open(self) -> None:
        """Wait, within the budget, until the server has given the run its id."""
        self._wait(lambda: self.journal.run_id is not None)

    def finish(self, status: str) -> None:
        """End the run and wait, within the budget, until everything has arrived."""
        self.journal.append({"op": "close", "status": status, "time": now_milliseconds()})
        if self.untracked:
            logger.warning("tracking: this run stays in %s; it is sent when the server lets us in", self.journal.folder)
        self._closing = True
        self.offline = False  # one more try, now that everything is written
        self._wake.set()
        if not self._wait(self._done.is_set):
            logger.warning("tracking: the server has not taken everything; the rest waits in %s", self.journal.folder)

    def _work(self) -> None:
        failures = 0
        remote = self.tracking.is_remote
        pauses = _RETRY_SECONDS if remote else _LOCAL_RETRY_SECONDS
        while True:
            self._wake.wait(pauses[min(failures, len(pauses)) - 1] if failures else FLUSH_SECONDS)
            self._wake.clear()
            closing = self._closing
            if not closing:
                self._sample()
            try:
                self._send()
                failures, self.offline = 0, False
            except Exception as error:  # noqa: BLE001 - no fault of the tracking server may reach training
                failures += 1
                self.offline = remote or failures >= _LOCAL_TRIES or isinstance(error, DeletedExperimentError)
                if self.offline:
                    self._report(error)
                if self.offline and closing:
                    self.journal.release()
                    break
                continue
            if closing:
                self.journal.discard()
                break
        self._done.set()

    def _send(self) -> None:
        if self.sender is None:
            client = self.tracking.client()
            if before := self.tracking.waiting_for(self.journal):
                self.tracking.replay(only=before)
            self.sender = Sender(client, self.journal, self.tracking.open_experiment())
            self.sender.send()
            self.tracking.replay()
        self.sender.send()

    def _report(self, error: Exception) -> None:
        if self._reported:
            return
        self._reported = True
        if isinstance(error, DeletedExperimentError):
            logger.warning("tracking: %s. This run waits in %s until then", error, self.journal.folder)
        elif is_unauthorised(error):
            self.untracked = True
            self.set_tags({"untracked": "the server refused our credentials at first; sent later"})
            logger.warning("tracking: the server does not accept our credentials (%s): run untracked", describe(error))
        else:
            logger.warning("tracking: the server does not answer (%s); metrics go to the spool", describe(error))

    def _sample(self) -> None:
        if time.monotonic() - self._sampled >= SYSTEM_SECONDS:
            self._sampled = time.monotonic()
            self.log_metrics(system_metrics(), step=int(time.time()))
