"""Short tracked "trainings", with and without an artifact, and what a server holds of them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import MlflowTracking
from yt8m_assets.tracking.sync import sync

BUDGET = 6.0
ROOT = Path(__file__).parents[2]


def open_tracking(uri: str, tmp_path: Path) -> MlflowTracking:
    return MlflowTracking(uri, artifact_location=str(tmp_path / "artifacts"), budget_seconds=BUDGET)


def train(tracking: MlflowTracking, steps: range, **options) -> tuple[Any, float]:
    """A short "training" with a metric a step; the run and the seconds it took."""
    started = time.monotonic()
    with tracking.run("tiny", kind="pretraining", model="tiny", **options) as run:
        for step in steps:
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    return run, time.monotonic() - started


def publish(store: ArtifactStore, tracking: Any, steps: range, fingerprint: str = "f", **options) -> Any:
    """A training that ends with an artifact: points, a picture, a data set and a registered model; the run."""
    with store.publish(f"finetuned_model/{fingerprint}", fingerprint=fingerprint) as publication:
        tags = {"fingerprint": fingerprint, **options.pop("tags", {})}
        with tracking.run("tiny", kind="finetuning", model="tiny", params={"a": 1}, tags=tags, **options) as run:
            for step in steps:
                run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
            (publication.path / "weights.bin").write_bytes(b"weights")
            picture = publication.report_path / "loss.png"
            picture.write_bytes(b"picture")
            run.log_artifact(picture, "report")
            run.log_dict({"steps": len(steps)}, "summary.json")
            run.log_dataset("shards", digest="d" * 64, source_uri="gs://bucket/shards", context="training")
            run.register_model("yt8m-tiny", publication.path, metric=float(len(steps)), description="Tiny.")
            run.keep(publication.path)
    return run


def synced(store: ArtifactStore, uri: str, tmp_path: Path) -> dict[str, int]:
    """What `yt8m sync-mlflow` finds: it waits for each answer as MLflow's client does, however busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        return dict(sync(store, open_tracking(uri, tmp_path)))


def losses(mlflow_uri: str, run_id: str) -> list[int]:
    from mlflow import MlflowClient

    return sorted(point.step for point in MlflowClient(mlflow_uri).get_metric_history(run_id, "train/loss"))


def all_runs(mlflow_uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    return list(client.search_runs([client.get_experiment_by_name("yt8m").experiment_id]))


def only_run(mlflow_uri: str) -> Any:
    (run,) = all_runs(mlflow_uri)
    return run


def assert_complete(mlflow_uri: str, steps: range) -> None:
    """The one run holds all that `publish` said, once."""
    from mlflow import MlflowClient

    client, run = MlflowClient(mlflow_uri, mlflow_uri), only_run(mlflow_uri)
    assert run.info.status == "FINISHED"
    assert losses(mlflow_uri, run.info.run_id) == list(steps)
    assert run.data.params == {"a": "1"}
    assert run.data.tags["mlflow.note.content"].endswith("Tiny.")
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["shards"]
    names = {entry.path for folder in ("", "report") for entry in client.list_artifacts(run.info.run_id, folder)}
    assert names == {"model", "report", "report/loss.png", "summary.json"}
    assert "model/weights.bin" in {entry.path for entry in client.list_artifacts(run.info.run_id, "model")}
    (version,) = client.search_model_versions("name = 'yt8m-tiny'")
    assert version.run_id == run.info.run_id
    assert str(client.get_model_version_by_alias("yt8m-tiny", "champion").version) == str(version.version)


def everything(mlflow_uri: str) -> dict[str, Any]:
    """All rows of the server's database."""
    import sqlite3

    with sqlite3.connect(mlflow_uri.removeprefix("sqlite:///")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for name in names}
    database.close()
    return rows


KILLED = """
import json, os, signal, sys, pathlib, time
from yt8m_assets.tracking import MlflowTracking
t = MlflowTracking(sys.argv[1], artifact_location=sys.argv[2])
with t.run("killed", kind="prediction", tags={"fingerprint": "f"}) as run:
    for step in range(20):
        run.log_metrics({"train/loss": 1.0}, step)
        if step == 9:
            pathlib.Path(sys.argv[3]).write_text(json.dumps(run.state()))
    run.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_one(mlflow_uri: str, tmp_path: Path) -> dict[str, Any]:
    """A process that dies after 20 steps; the state that its checkpoint of the tenth holds."""
    command = [sys.executable, "-c", KILLED, mlflow_uri, str(tmp_path / "artifacts"), str(tmp_path / "state.json")]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -9
    return dict(json.loads((tmp_path / "state.json").read_text()))
