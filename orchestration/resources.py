"""The resources of the graph: configured in Dagster's way, handed to assets as the core's own types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from orchestration.settings import Settings
from yt8m_assets.progress import LogProgress, Progress
from yt8m_assets.storage import KEEP_GENERATIONS, ArtifactStore
from yt8m_assets.storage.cache import Cache
from yt8m_assets.tracking import EXPERIMENT, MlflowTracking, Tracking


class StoreResource(dg.ConfigurableResource):
    """The artifact store."""

    root_uri: str = Field(description="Root of the artifacts: an absolute folder, or gs://bucket/folder.")
    cache_path: str = Field(description="Folder of verified copies and indexes, which can be made again.")
    cache_bytes: int | None = Field(default=None, description="Bytes that copies of shards may take there.")
    keep_generations: int = Field(default=KEEP_GENERATIONS, description="Generations of an artifact that stay.")

    def create_resource(self, context: dg.InitResourceContext | None) -> ArtifactStore:
        """What assets get."""
        return ArtifactStore(self.root_uri, Cache(Path(self.cache_path), self.cache_bytes), self.keep_generations)


class TrackingResource(dg.ConfigurableResource):
    """Experiment tracking with MLflow, which is imported when a run is first opened."""

    tracking_uri: str = Field(description="MLflow's tracking URI: sqlite:///file, or a server's address.")
    artifact_location: str | None = Field(default=None, description="Where files go; empty: the server decides.")
    ui_url: str = Field(description="Address of the MLflow UI, for links.")
    experiment: str = Field(default=EXPERIMENT, description="Name of the experiment.")

    def create_resource(self, context: dg.InitResourceContext) -> Tracking:
        """What assets get."""
        from yt8m_assets.serving import save_servable

        return MlflowTracking(
            tracking_uri=self.tracking_uri,
            experiment=self.experiment,
            artifact_location=self.artifact_location,
            ui_url=self.ui_url,
            servable=save_servable,
        )


class ProgressResource(dg.ConfigurableResource):
    """Progress as lines in the run's log."""

    seconds: float = Field(default=60.0, description="Seconds between two lines of one task.")

    def open(self, log: Any) -> Progress:
        """The progress of one asset."""
        return LogProgress(log, self.seconds)


class FixedProgress:
    """The same progress for every asset: the bars of the command line."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def open(self, log: Any) -> Progress:
        """The progress given, whatever the log."""
        return self.progress


def store_of(resources: Mapping[str, Any]) -> ArtifactStore:
    """The store among the resources, for what is asked outside of a run."""
    store: StoreResource | ArtifactStore = resources["store"]
    return store.create_resource(None) if isinstance(store, StoreResource) else store


def build_resources(settings: Settings) -> dict[str, Any]:
    """Resources by the names that assets ask for. A tracking URI from the environment stays a reference to it."""
    may_hold_a_password = not settings.tracking_uri.startswith("sqlite")
    return {
        "store": StoreResource(
            root_uri=settings.storage_uri,
            cache_path=str(settings.cache_path),
            cache_bytes=settings.cache_bytes,
            keep_generations=settings.keep_generations,
        ),
        "tracking": TrackingResource(
            tracking_uri=dg.EnvVar("MLFLOW_TRACKING_URI") if may_hold_a_password else settings.tracking_uri,
            artifact_location=settings.artifact_location,
            ui_url=settings.mlflow_ui_url,
            experiment=settings.experiment,
        ),
        "progress": ProgressResource(),
    }
