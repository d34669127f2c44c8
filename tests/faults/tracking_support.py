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
SCORES = (0.5, 0.75, 0.625)
"""On the hold-out, of the checkpoints that `publish` keeps; the second is published."""
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
            run.log_dataset("ratings", digest="e" * 64, source_uri="gs://bucket/ratings", context="holdout")
            for step, score in enumerate(SCORES):
                run.log_metrics({"holdout/map_at_100000": score}, step)
                run.log_checkpoint(f"step-{step}", step, {"holdout/map_at_100000": score}, published=step == 1)
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
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"shards", "ratings"}
    names = {entry.path for folder in ("", "report") for entry in client.list_artifacts(run.info.run_id, folder)}
    assert names == {"report", "report/loss.png", "summary.json"}
    points = client.get_metric_history(run.info.run_id, "holdout/map_at_100000")
    assert [(point.step, point.value) for point in points] == list(enumerate(SCORES))
    best, *others = ranked_models(mlflow_uri, "ratings", "e" * 36)
    assert [model.name for model in (best, *others)] == [f"tiny-finetuning-step-{step}" for step in (1, 2, 0)]
    assert {str(model.status) for model in (best, *others)} == {"READY"}
    assert [model.tags.get("published") for model in (best, *others)] == ["true", None, None]
    (version,) = client.search_model_versions("name = 'yt8m-tiny'")
    assert version.run_id == run.info.run_id
    assert (version.tags["logged_model"], version.source) == (best.model_id, best.artifact_location)
    assert json.loads(best.tags["mlflow.modelVersions"]) == [{"name": "yt8m-tiny", "version": int(version.version)}]
    assert "weights.bin" in {entry.path for entry in client.list_logged_model_artifacts(best.model_id)}
    assert str(client.get_model_version_by_alias("yt8m-tiny", "champion").version) == str(version.version)


def ranked_models(mlflow_uri: str, dataset: str, digest: str, metric: str = "holdout/map_at_100000") -> list[Any]:
    """The experiment's logged models as the Models tab ranks them by a metric on a data set, best first."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri, mlflow_uri)
    order = {"field_name": f"metrics.{metric}", "ascending": False}
    order |= {"dataset_name": dataset, "dataset_digest": digest}
    experiment = client.get_experiment_by_name("yt8m")
    return list(client.search_logged_models([experiment.experiment_id], order_by=[order]))


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
