"""Row F40 with a real training: the tracking server stops answering in mid-run."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.tracking_server import faulty_server
from tests.memory_tracking import MemoryTracking
from tests.training.support import MIX, make_recipe, open_store, prepare_store, write_shards
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.training import pretrain
from yt8m_assets.storage import Manifest
from yt8m_assets.tracking import MlflowTracking
from yt8m_assets.tracking.sync import sync
from yt8m_assets.training.step import Stepper

BUDGET_SECONDS = 10.0
"""What a server that does not answer may cost a training in total; the tracker's default."""


def timed(folder: Path, recipe: Recipe, tracking: Any) -> tuple[Manifest, float]:
    """Pre-train into a folder; the model's manifest and the seconds it took."""
    store = prepare_store(folder, recipe)
    started = time.monotonic()
    result = pretrain(recipe, store, "mix", tracking=tracking, progress=NullProgress(), run_tags={})
    return result.manifest, time.monotonic() - started


def stored(mlflow_uri: str, name: str) -> list[tuple[int, float]]:
    """All points of a metric over all runs on the server, by step."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("yt8m")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    points = [point for run in runs for point in client.get_metric_history(run.info.run_id, name)]
    return sorted((point.step, point.value) for point in points)


def test_f40_training_ends_in_its_normal_time_and_the_metrics_are_complete_after_sync(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards")
    recipe = make_recipe(tmp_path / "shards", MIX)
    normal = MemoryTracking()
    reference, normal_seconds = timed(tmp_path / "normal", recipe, normal)
    with faulty_server(mlflow_uri, str(tmp_path / "files"), monkeypatch) as server:
        run = Stepper.run
        waited = 0.0

        def dying(self: Stepper, batch: Batch, step: int, rate: float) -> torch.Tensor:
            nonlocal waited
            if step == 5:
                started = time.monotonic()
                while not stored(mlflow_uri, "train/loss") and time.monotonic() < started + 30:
                    time.sleep(0.05)  # until the server has seen a part
                waited = time.monotonic() - started
                server.mode = "hang"
            return run(self, batch, step, rate)

        monkeypatch.setattr(Stepper, "run", dying)
        tracking = MlflowTracking(server.uri, artifact_location=str(tmp_path / "files"))
        manifest, seconds = timed(tmp_path / "dying", recipe, tracking)
        assert manifest.digest == reference.digest
        assert seconds - waited < normal_seconds + BUDGET_SECONDS + 2
        assert 0 < len(stored(mlflow_uri, "train/loss")) < 12, "the server died in mid-run"

        server.mode = "up"
        assert sync(open_store(tmp_path / "dying"), MlflowTracking(server.uri)).total() == 1
    for name in ("train/loss", "train/learning_rate"):
        assert stored(mlflow_uri, name) == normal.runs[0].series(name), "complete, and nothing twice"
