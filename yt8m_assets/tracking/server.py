"""An MLflow server: its client, its experiment, how long to be patient with it. MLflow is imported on first use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from yt8m_assets.tracking.errors import DeletedExperimentError, is_refusal
from yt8m_assets.tracking.view import EXPERIMENT, EXPERIMENT_TAGS

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_BUDGET_SECONDS = 45.0
"""Patience with a local database: its first use builds the tables, and a wait for it is a wait for our own disk."""


class Server:
    """One experiment on one MLflow server, or in its database.

    `artifact_location` (absolute path or URI) is where a new experiment keeps its files; None leaves it to the server.
    `ui_url` is the address of the MLflow UI for links; by default that of an http tracking server. `servable` writes
    a model folder of ours as one that MLflow can load; None registers the folder as it is.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str = EXPERIMENT,
        artifact_location: str | None = None,
        ui_url: str | None = None,
        budget_seconds: float = 10.0,
        servable: Callable[[Path, Path], Path] | None = None,
    ) -> None:
        self._tracking_uri = tracking_uri
        self.experiment, self.artifact_location, self.budget_seconds = experiment, artifact_location, budget_seconds
        self.is_remote = tracking_uri.startswith(("http://", "https://"))
        self.ui_url = (ui_url or (public_uri(tracking_uri) if self.is_remote else "")).rstrip("/") or None
        self.experiment_id: str | None = None
        self.servable = servable
        self._client: MlflowClient | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({public_uri(self._tracking_uri)!r}, {self.experiment!r})"

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
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # is read when MLflow is imported
            from mlflow import MlflowClient

            scheme, _, path = self._tracking_uri.partition(":///")
            if scheme == "sqlite" and path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self._tracking_uri, self._tracking_uri)
        return self._client

    def open_experiment(self) -> str:
        """Id of the experiment, which is made on first use."""
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
        return str(self.experiment_id)


def public_uri(uri: str) -> str:
    """A URI without user and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
