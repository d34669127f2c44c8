"""`yt8m sync-mlflow`: any server shows what the store holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main
from tests.orchestration.conftest import Graph

RECIPE = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
OF_THE_SERVER = ("yt8m.process", "yt8m.alive")
"""Tags of a run that say who works on it."""


def sync(graph: Graph, tmp_path: Path, *options: str) -> int:
    (tmp_path / "recipe.py").write_text(RECIPE)
    state = str(graph.state.root)
    return main(["sync-mlflow", "--state", state, "--recipe", str(tmp_path / "recipe.py"), *options])


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
        folders = ("", "report", "model")
        files = {entry.path for folder in folders for entry in client.list_artifacts(run.info.run_id, folder)}
        versions = client.search_model_versions(f"run_id = '{run.info.run_id}'")
        found[f"{run.info.run_name} {run.data.tags['fingerprint']}"] = {
            "status": run.info.status,
            "started": run.info.start_time,
            "params": run.data.params,
            "tags": {name: value for name, value in run.data.tags.items() if name not in OF_THE_SERVER},
            "points": points,
            "files": files,
            "datasets": sorted(entry.dataset.name for entry in run.inputs.dataset_inputs),
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


def test_records_hold_no_secret(graph: Graph) -> None:
    """Names of the environment's secrets are nowhere in what is kept; a record is its run and nothing else."""
    for path in graph.state.root.glob("artifacts/**/report/run.json"):
        assert set(json.loads(path.read_text())) == {
            "token", "name", "tags", "params", "started", "ended", "attempt", "parent", "points", "datasets", "files",
            "dicts", "model",
        }  # fmt: skip
