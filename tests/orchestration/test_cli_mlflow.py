"""`yt8m sync-mlflow`: any server shows what the store holds."""

import json
import shutil
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main
from tests.faults.tracking_server import faulty_server
from tests.faults.tracking_support import ranked_models
from tests.orchestration.conftest import Graph
from yt8m_assets.training.model_files import read_json

RECIPE = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
OF_THE_SERVER = ("yt8m.process", "yt8m.alive")
"""Tags of a run that say who works on it."""


def sync(graph: Graph, tmp_path: Path, *options: str) -> int:
    (tmp_path / "recipe.py").write_text(RECIPE)
    state = str(graph.state.root)
    return main(["sync-mlflow", "--state", state, "--recipe", str(tmp_path / "recipe.py"), *options])


def scored(metric: Any) -> tuple[object, ...]:
    return metric.key, metric.step, metric.value, metric.dataset_name, metric.dataset_digest


def shown(uri: str) -> dict[str, Any]:
    """All runs of a server by name and fingerprint, as far as they are the same on every server."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("yt8m")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        points = {
            n: [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, n)] for n in names
        }
        folders = ("", "report")
        files = {entry.path for folder in folders for entry in client.list_artifacts(run.info.run_id, folder)}
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        models = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
        stored = {m.name: {e.path for e in client.list_logged_model_artifacts(m.model_id)} for m in models}
        found[f"{run.info.run_name} {run.data.tags['fingerprint']}"] = {
            "status": run.info.status,
            "started": run.info.start_time,
            "params": run.data.params,
            "tags": {name: value for name, value in run.data.tags.items() if name not in OF_THE_SERVER},
            "points": points,
            "files": files,
            "datasets": sorted(entry.dataset.name for entry in run.inputs.dataset_inputs),
            "models": {
                m.name: [str(m.status), m.params, m.tags, stored[m.name], sorted(map(scored, m.metrics))]
                for m in models
            },
            "versions": [(v.name, v.description, v.tags["metric"], v.aliases) for v in versions],
        }
    return found


def test_an_empty_server_comes_to_show_what_the_first_one_does(
    own_graph: Graph,
    migrated_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "other.db").write_bytes(migrated_database.read_bytes())
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setenv("DAGSTER_HOME", "")
    before = shown(own_graph.settings.tracking_uri)
    assert sync(own_graph, tmp_path) == 0
    assert capsys.readouterr().out.endswith(f": {len(before)} made\n")
    after = shown(other)
    assert after == before
    assert sync(own_graph, tmp_path) == 0
    assert capsys.readouterr().out.endswith(f": {len(before)} complete before\n")
    assert shown(other) == after


def test_every_run_leads_to_its_asset_and_the_submission_is_one_s_artifact(graph: Graph) -> None:
    runs = shown(graph.settings.tracking_uri)
    kinds = {run["tags"]["kind"] for run in runs.values()}
    assert kinds == {"pretraining", "finetuning", "prediction", "ensemble", "submission", "report"}
    assert graph.first is not None
    for run in runs.values():
        assert run["tags"]["dagster_run_id"] in graph.first.runs
        assert run["tags"]["dagster_asset"] == run["tags"]["asset"]
        assert run["tags"]["fingerprint"]
        assert run["status"] == "FINISHED"
    (submission,) = (run for run in runs.values() if run["tags"]["kind"] == "submission")
    assert submission["files"] == {"submission.csv"}
    manifest = graph.store.require("submission")
    assert submission["tags"]["fingerprint"] == manifest.fingerprint
    assert submission["points"]["submission/num_listed"][0][1] == manifest.metadata["num_listed"]
    assert submission["datasets"] == ["test_shards"]


def test_the_models_tab_ranks_the_kept_checkpoints_and_the_version_is_the_best_one_s(graph: Graph) -> None:
    """Each is scored on the hold-out of its run, with the figures of the run; pre-training shows what it published."""
    from mlflow import MlflowClient

    uri, store = graph.settings.tracking_uri, graph.store
    client, ratings = MlflowClient(uri, uri), graph.store.require("holdout_ratings")
    ranked = ranked_models(uri, "holdout_ratings", ratings.digest[:36])
    scores = {model.name: {metric.key: metric for metric in model.metrics} for model in ranked}
    assert "leaderboard-ensemble" in scores, "among them, measured on the same ratings"
    for key in ("one", "two"):
        training = read_json(store.fetch(store.require(f"finetuned_model/{key}")) / "training.json")
        own = [model for model in ranked if model.tags.get("model") == key and model.model_type == "finetuning"]
        best = own[0]
        metric = scores[best.name]["holdout/map_at_100000"]
        assert (best.name, metric.value) == (
            f"{key}-finetuning-step-{training['best']['step']}",
            training["best"]["map"],
        )
        assert (metric.dataset_name, metric.run_id) == ("holdout_ratings", best.source_run_id)
        improved = running_best(training["evaluations"])
        assert {model.name for model in own} == {f"{key}-finetuning-step-{step}" for step in improved}
        assert [model.name for model in own if model.tags.get("published")] == [best.name]
        version = client.get_model_version_by_alias(f"yt8m-tiny-{key}", "champion")
        assert version.tags["logged_model"] == best.model_id
        assert "MLmodel" in {entry.path for entry in client.list_logged_model_artifacts(best.model_id)}
        (pretrained,) = (m for m in ranked if m.tags.get("model") == key and m.model_type == "pretraining")
        assert (pretrained.tags["published"], pretrained.params["step"]) == ("true", "3")
        assert {metric.dataset_name for metric in pretrained.metrics} <= {"pretraining_holdout"}


def running_best(evaluations: list[dict[str, float]]) -> list[int]:
    """The steps at which MAP was higher than ever before."""
    steps, best = [], -1.0
    for entry in evaluations:
        if entry["map"] > best:
            best = entry["map"]
            steps.append(int(entry["step"]))
    return steps


def test_what_cannot_be_read_is_left_out_and_named(
    own_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    from yt8m_assets.tracking.sync import kept_runs

    number = len(list(kept_runs(own_graph.store)))
    (path,) = own_graph.state.root.glob("artifacts/submission/*/report/run.json")
    path.write_bytes(path.read_bytes()[:-9])
    assert len(list(kept_runs(own_graph.store))) == number - 1
    assert "submission: its run cannot be read" in caplog.text
    assert sync(own_graph, tmp_path) == 0


def test_a_server_that_is_gone_is_one_message_without_its_password(
    own_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:canary-7731@127.0.0.1:9")
    assert sync(own_graph, tmp_path) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9" in error
    assert "does not take the runs" in error
    assert "canary" not in error


def test_a_damaged_file_is_counted_and_what_helps_is_said(
    own_graph: Graph,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    (path,) = own_graph.state.root.glob("artifacts/finetuned_model/one/*/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert sync(own_graph, tmp_path) == 1
    assert "1 damaged here (`yt8m verify --repair`" in capsys.readouterr().out


def damage_tags(database: Path) -> None:
    """Overwrite the first page of MLflow's table of runs' tags, as a bad sector does."""
    with closing(sqlite3.connect(database)) as connection:
        ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tags'").fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    with database.open("r+b") as file:
        file.seek(24)
        file.write(b"\xff" * 4)  # the counter of changes: who has the database open reads it anew
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("served", [False, True])
def test_a_damaged_database_is_named_and_an_empty_one_is_filled(
    own_graph: Graph,
    migrated_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    served: bool,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    before, own = shown(own_graph.settings.tracking_uri), own_graph.state.root / "mlflow" / "mlflow.db"
    database = tmp_path / "served.db" if served else own
    shutil.copyfile(own, tmp_path / "served.db")
    damage_tags(database)
    with ExitStack() as stack:
        if served:
            artifacts = str(own_graph.state.mlflow_artifacts)
            server = stack.enter_context(faulty_server(f"sqlite:///{database}", artifacts, monkeypatch))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert sync(own_graph, tmp_path) == 1
    error = capsys.readouterr().err
    assert ("stop that server" if served else f"stop `yt8m ui` where it runs, delete {database}") in error
    shutil.copyfile(migrated_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    assert sync(own_graph, tmp_path) == 0
    assert shown(f"sqlite:///{database}") == before


def test_records_hold_no_secret(graph: Graph) -> None:
    """Names of the environment's secrets are nowhere in what is kept; a record is its run and nothing else."""
    for path in graph.state.root.glob("artifacts/**/report/run.json"):
        assert set(json.loads(path.read_text())) == {
            "token", "name", "tags", "params", "started", "ended", "attempt", "parent", "points", "datasets", "files",
            "dicts", "model", "checkpoints", "published",
        }  # fmt: skip
