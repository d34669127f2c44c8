"""Runs in MLflow that cost training nothing: a thread shows each run's record on the server while it grows.

A server that is slow or gone costs a run at most `budget_seconds` in total. Nothing waits on disk for it: what it lacks
is in the record, which checkpoints and artifacts hold. MLflow is imported when a run starts, not before.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yt8m_assets.tracking.errors import DeletedExperimentError, describe, is_unauthorised
from yt8m_assets.tracking.mirror import OPEN_RUNS, Mirror, end_dead_runs, own_process
from yt8m_assets.tracking.protocol import TrackedRun, Tracking, status_of
from yt8m_assets.tracking.record import Record
from yt8m_assets.tracking.server import Server
from yt8m_assets.tracking.system import SystemMonitor

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
SYSTEM_SECONDS = 10.0
BEAT_SECONDS = 20.0
_RETRY_SECONDS = (2.0, 5.0, 15.0, 30.0)
_LOCAL_RETRY_SECONDS = (0.3, 0.6, 1.2, 2.4, 5.0)
_LOCAL_TRIES = 5
"""A local database that another process has locked comes back by itself; after these tries it counts as gone."""
LATER = "`yt8m sync-mlflow` adds what checkpoints and artifacts hold of it"


class MlflowTracking(Server, Tracking):
    """Opens MLflow runs in the experiment of a server."""

    @contextmanager
    def show(self, record: Record) -> Iterator["MlflowRun"]:
        """The record's run on the server."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow.tracking  # noqa: F401 - here, where its seconds do not count as the server's

        run = MlflowRun(self, record)
        try:
            run.flush()
            yield run
        except BaseException as error:
            run.finish(status_of(error))
            raise
        run.finish("FINISHED")


class MlflowRun(TrackedRun):
    """An open run; its thread ends when everything has arrived, or when the server is gone and the run is closed."""

    def __init__(self, tracking: MlflowTracking, record: Record) -> None:
        super().__init__(record)
        self.tracking = tracking
        self._mirror: Mirror | None = None
        self._monitor: SystemMonitor | None = None
        self._status: str | None = None
        self._asked = self._answered = 0
        self._delivered = self._reported = self._swept = False
        self._spent, self._beaten, self._sampled = 0.0, 0.0, time.monotonic()
        self._wake = threading.Event()
        OPEN_RUNS.add(record.token)
        threading.Thread(target=self._work, name=f"tracking-{record.token[:8]}", daemon=True).start()

    @property
    def url(self) -> str | None:  # type: ignore[override]
        """Page of the run."""
        experiment_id, base = self.tracking.experiment_id, self.tracking.ui_url
        if not (experiment_id and base and self.run_id):
            return None
        # without the workflow, MLflow keeps the one last looked at, and that begins as the one for language models
        return f"{base}/#/experiments/{experiment_id}/runs/{self.run_id}?workflowType=machine_learning"

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None:
        """Register a version of a model; its number, or None while the server has not answered."""
        super().register_model(name, folder, metric=metric, description=description)
        self.flush()
        return self._mirror.version or None if self._mirror is not None else None

    def flush(self) -> None:
        """Have what was said sent, and wait for that as long as the run's budget lasts; uploads that move are free."""
        self._asked += 1
        number, before = self._asked, time.monotonic()
        self._wake.set()
        while self._answered < number and self._spent < self.tracking.patience_seconds:
            time.sleep(0.02)
            now = time.monotonic()
            if not (self._mirror and self._mirror.uploading):
                self._spent += now - before
            before = now

    def finish(self, status: str) -> None:
        """End the run and wait, within the budget, until everything has arrived."""
        self._status = status
        self.flush()
        OPEN_RUNS.discard(self.record.token)
        if not self._delivered:
            logger.warning("tracking: the server has not taken all of run %r; %s", self.record.name, LATER)

    def _work(self) -> None:
        failures, remote = 0, self.tracking.is_remote
        pauses = _RETRY_SECONDS if remote else _LOCAL_RETRY_SECONDS
        while True:
            self._wake.wait(pauses[min(failures, len(pauses)) - 1] if failures else FLUSH_SECONDS)
            self._wake.clear()
            asked, status = self._asked, self._status
            try:
                self._send(status)
                failures = 0
            except Exception as error:  # noqa: BLE001 - no fault of the tracking server may reach training
                failures, self._mirror = failures + 1, None
                if not (remote or failures >= _LOCAL_TRIES or isinstance(error, DeletedExperimentError)):
                    continue
                self._report(error)
            self._delivered = status is not None and not failures
            self._answered = asked
            if status is not None:
                return

    def _send(self, status: str | None) -> None:
        tracking = self.tracking
        if self._mirror is None:
            self._mirror = Mirror(tracking, self.record, own_process())
            self.run_id, self._beaten = self._mirror.run_id, 0.0
            OPEN_RUNS.add(self.record.token)
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS:
            self._mirror.beat()
            self._beaten = now
        if status is None and now - self._sampled >= SYSTEM_SECONDS:
            self._sampled = now
            self._monitor = self._monitor or SystemMonitor()
            self._mirror.log_system(self._monitor.metrics())
        self._mirror.push(list(self.paths), self.model_path)
        if not self._swept:
            end_dead_runs(tracking)
            self._swept = True
        if status is not None:
            self._mirror.end(status)

    def _report(self, error: Exception) -> None:
        if self._reported:
            return
        self._reported = True
        if isinstance(error, DeletedExperimentError):
            logger.warning("tracking: %s; then %s", error, LATER)
        elif is_unauthorised(error):
            self.set_tags({"untracked": "the server refused our credentials at first; sent later"})
            logger.warning("tracking: the server does not accept our credentials (%s): run untracked", describe(error))
        else:
            logger.warning("tracking: the server does not answer (%s); %s", describe(error), LATER)
