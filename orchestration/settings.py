"""What the environment says, read once, with embedded defaults for all of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestration.cluster import DeploymentOptions, read_deployment
from orchestration.state import State
from yt8m_assets.errors import ConfigError
from yt8m_assets.storage import KEEP_GENERATIONS, ArtifactStore
from yt8m_assets.storage.cache import CACHE, CACHE_GB, Cache
from yt8m_assets.tracking import EXPERIMENT, MlflowTracking, public_uri

EXECUTORS = ("in_process", "multiprocess", "k8s", "vertex")
"""How Dagster may run steps: see `orchestration.executors`."""
BACKFILLS = ("single_run", "per_partition")
"""How a backfill of models, predictions or rankings becomes runs: as few as can be, or one for each partition."""

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Schemes of tracking URIs that name a database; `yt8m ui` serves its pages."""
EMBEDDED_MLFLOW_URL = "http://127.0.0.1:5000"
"""Where `yt8m ui` serves MLflow's pages unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value per environment variable."""

    recipe: str
    """YT8M_RECIPE: demo, challenge, demo_beyond, beyond, or the path of a file."""
    storage_uri: str
    """YT8M_STORAGE: root of the artifacts, a folder or gs://bucket/folder."""
    cache_path: Path
    """YT8M_CACHE: folder of verified copies, which can be made again; by default in the state folder."""
    cache_bytes: int | None = None
    """YT8M_CACHE_GB, in bytes: what copies of shards may take; None: half of the whole disk."""
    tracking_uri: str
    """MLFLOW_TRACKING_URI; may hold a password, so it is never shown."""
    artifact_location: str | None
    """Where runs that go straight to a database keep their files; None leaves it to the tracking server."""
    mlflow_ui_url: str
    """YT8M_MLFLOW_UI_URL: where links in metadata lead to, without credentials; empty where that is unknown."""
    executor: str
    """YT8M_EXECUTOR: how Dagster runs steps."""
    backfill: str
    """YT8M_BACKFILL: whether backfilled models, predictions and rankings share runs, and so passes over the data."""
    experiment: str = EXPERIMENT
    """MLFLOW_EXPERIMENT_NAME: the experiment that holds every run."""
    keep_generations: int = KEEP_GENERATIONS
    """YT8M_KEEP_GENERATIONS: how many generations of an artifact stay, so that going back to a recipe costs nothing."""
    deployment: DeploymentOptions = field(default_factory=DeploymentOptions)
    """YT8M_DEPLOYMENT: JSON, or the path of a JSON file, with what this deployment has of its own."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError(f"YT8M_EXECUTOR = {self.executor!r}: choose one of {', '.join(EXECUTORS)}")
        if self.backfill not in BACKFILLS:
            raise ConfigError(f"YT8M_BACKFILL = {self.backfill!r}: choose one of {', '.join(BACKFILLS)}")
        if self.keep_generations < 2:
            raise ConfigError(f"YT8M_KEEP_GENERATIONS = {self.keep_generations}: must be at least 2")
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ConfigError(f"{CACHE_GB} = {self.cache_bytes // 2**30}: must be at least 1")

    @classmethod
    def from_environment(cls, state: State, environment: Mapping[str, str] | None = None) -> "Settings":
        """The settings of an environment (this process's, unless given); relative paths are of the working folder."""
        values = os.environ if environment is None else environment
        tracking_uri = _absolute_sqlite(values.get("MLFLOW_TRACKING_URI") or state.mlflow_database_uri)
        from_database = is_database(tracking_uri)
        served = public_uri(tracking_uri) if tracking_uri.startswith("http") else ""
        return cls(
            recipe=absolute_recipe(values.get("YT8M_RECIPE") or "demo"),
            storage_uri=_absolute(values.get("YT8M_STORAGE") or str(state.artifacts)),
            cache_path=Path(_absolute(values.get(CACHE) or str(state.cache))),
            cache_bytes=_whole_number(values, CACHE_GB, 0) * 2**30 or None,
            tracking_uri=tracking_uri,
            artifact_location=state.mlflow_artifacts.as_uri() if from_database else None,
            mlflow_ui_url=values.get("YT8M_MLFLOW_UI_URL") or (EMBEDDED_MLFLOW_URL if from_database else served),
            experiment=values.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT,
            executor=values.get("YT8M_EXECUTOR") or "multiprocess",
            backfill=values.get("YT8M_BACKFILL") or "single_run",
            keep_generations=_whole_number(values, "YT8M_KEEP_GENERATIONS", KEEP_GENERATIONS),
            deployment=read_deployment(values.get("YT8M_DEPLOYMENT")),
        )

    def open_store(self) -> ArtifactStore:
        """The artifact store."""
        return ArtifactStore(self.storage_uri, Cache(self.cache_path, self.cache_bytes), self.keep_generations)

    def open_tracking(self, **options: Any) -> MlflowTracking:
        """The tracking with MLflow, which connects when a run is first opened."""
        from yt8m_assets.serving import save_servable

        return MlflowTracking(
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
            artifact_location=self.artifact_location,
            ui_url=self.mlflow_ui_url,
            servable=save_servable,
            **options,
        )


def _whole_number(values: Mapping[str, str], name: str, default: int) -> int:
    text = values.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} = {text!r}: give a whole number") from error


def is_database(tracking_uri: str) -> bool:
    """Whether a tracking URI names a database that no MLflow server stands before, as the embedded SQLite file."""
    return urlsplit(tracking_uri).scheme.split("+")[0] in DATABASES


def absolute_recipe(name: str) -> str:
    """A recipe's name, or the absolute path of its file: servers work in another folder than who starts them."""
    return _absolute(name) if Path(name).suffix in (".py", ".json") else name


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _absolute_sqlite(uri: str) -> str:
    """SQLAlchemy's spelling: three slashes and a path that may be relative to the working folder."""
    scheme, found, path = uri.partition(":///")
    if not found or scheme.split("+")[0] != "sqlite" or path in ("", ":memory:"):
        return uri
    return f"{scheme}:///{Path(path).absolute()}"
