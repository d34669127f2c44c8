"""Runs in MLflow that cost training nothing: a thread sends what a journal on disk holds.

A server that is slow or gone costs a run at most `budget_seconds` in total; what it missed stays in the spool and is
sent when a later run finds the server again. MLflow is imported when a run starts, not before.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from yt8m_assets.storage import sha256_text
from yt8m_assets.tracking.errors import DeletedExperimentError, is_refusal
from yt8m_assets.tracking.mirror import MAX_PARAM, MAX_TAG, SPOOLED, Sender, mlflow_name
from yt8m_assets.tracking.run import MlflowRun, now_milliseconds
from yt8m_assets.tracking.spool import Journal, Spool
from yt8m_assets.tracking.system import code_tags
from yt8m_assets.tracking.view import EXPERIMENT, EXPERIMENT_TAGS, NOTE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_BUDGET_SECONDS = 45.0
"""Patience with a local database: its first use builds the tables, and a wait for it is a wait for our own disk."""


class MlflowTracking:
    """Opens MLflow runs in one experiment; what a server misses waits below `spool_path`.

    `artifact_location` (absolute path or URI) is where a new experiment keeps its files; None leaves it to the server.
    `ui_url` is the address of the MLflow UI for links; by default that of an http tracking server.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str = EXPERIMENT,
        artifact_location: str | None = None,
        spool_path: Path | None = None,
        ui_url: str | None = None,
        budget_seconds: float = 10.0,
    ) -> None:
        self._tracking_uri = tracking_uri
        self.experiment, self.artifact_location, self.budget_seconds = experiment, artifact_location, budget_seconds
        self.is_remote = tracking_uri.startswith(("http://", "https://"))
        self.ui_url = (ui_url or (public_uri(tracking_uri) if self.is_remote else "")).rstrip("/") or None
        self.experiment_id: str | None = None
        root = spool_path or Path.home() / ".cache" / "yt8m" / "tracking"
        self.spool = Spool(root / sha256_text(tracking_uri)[:16])
        self._client: MlflowClient | None = None

    def __repr__(self) -> str:
        return f"MlflowTracking({public_uri(self._tracking_uri)!r}, {self.experiment!r})"

    @property
    def patience_seconds(self) -> float:
        """How long the calls of one run may wait in total."""
        return self.budget_seconds if self.is_remote else max(self.budget_seconds, LOCAL_BUDGET_SECONDS)

    def client(self) -> "MlflowClient":
        """The MLflow client."""
        if self._client is None:
            seconds = max(1, int(self.budget_seconds * 0.3))  # so that one dead call leaves time for the next
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(seconds))
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
            from mlflow import MlflowClient

            scheme, _, path = self._tracking_uri.partition(":///")
            if scheme == "sqlite" and path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self._tracking_uri, self._tracking_uri)
        return self._client

    def open_experiment(self) -> str:
        """Id of the experiment, which is made on first use."""
        if self.experiment_id is None:
            client = self.client()
            found = client.get_experiment_by_name(self.experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise DeletedExperimentError(self.experiment, found.experiment_id)
            try:
                self.experiment_id = (
                    client.create_experiment(self.experiment, self.artifact_location, dict(EXPERIMENT_TAGS))
                    if found is None
                    else found.experiment_id
                )
            except Exception as error:
                again = client.get_experiment_by_name(self.experiment) if is_refusal(error) else None
                if again is None:
                    raise
                self.experiment_id = again.experiment_id  # another process has made it in the meantime
        return self.experiment_id

    def waiting_for(self, journal: Journal) -> str | None:
        """Name of the journal left behind that must be sent before this one: the one it resumes."""
        operations = journal.head(1)
        resume_id = (operations[0].get("resume_id") if operations else None) or ""
        return resume_id.removeprefix(SPOOLED) if resume_id.startswith(SPOOLED) else None

    def replay(self, only: str | None = None) -> int:
        """Send what earlier runs could not (`only`: one of them); how many were completed. Raises what MLflow does."""
        count = 0
        for journal in self.spool.left_behind(only):
            try:
                if before := self.waiting_for(journal):
                    count += self.replay(before)
                Sender(self.client(), journal, self.open_experiment(), uncertain=True).send()
            except BaseException:
                journal.release()
                raise
            journal.discard()
            count += 1
        return count

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
    ) -> Iterator[MlflowRun]:
        """Open a run; see `Tracking.run`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # is read when MLflow is imported
        import mlflow.tracking  # noqa: F401 - here, where its seconds do not count as the server's

        journal = self.spool.create()
        known = {"model": model, NOTE_TAG: note_of(name, tags or {})} if model else {}
        own_tags = {"kind": kind, **known, **code_tags(), **(tags or {})}
        texts = {mlflow_name(key): str(value)[:MAX_TAG] for key, value in own_tags.items()}
        operation = {
            "op": "open",
            "name": name,
            "tags": texts,
            "params": {mlflow_name(key): str(value)[:MAX_PARAM] for key, value in (params or {}).items()},
            "resume_id": resume_id,
            "time": now_milliseconds(),
        }
        journal.append(operation)
        run = MlflowRun(self, journal, texts)
        run.wait_until_open()
        try:
            yield run
        except BaseException as error:
            run.finish(status_of(error))
            raise
        run.finish("FINISHED")


def status_of(error: BaseException) -> str:
    """MLflow's status of a run that an exception ended: KILLED for an interrupt or a preemption, FAILED otherwise.

    A preemption has an exit code of its own (training/interruption.py); interrupts are not Exceptions.
    """
    asked_to_stop = not isinstance(error, Exception) or getattr(error, "exit_code", None) is not None
    return "KILLED" if asked_to_stop else "FAILED"


def note_of(name: str, tags: Mapping[str, str]) -> str:
    """The description of a model's run: what it is called, and of which recipe it is."""
    return f"{name}, recipe {tags['recipe']}" if "recipe" in tags else name


def public_uri(uri: str) -> str:
    """A URI without user and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
