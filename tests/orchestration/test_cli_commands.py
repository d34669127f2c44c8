"""Commands over the whole graph: `yt8m status`, `ablate` and `materialize`."""

import json
import logging
from pathlib import Path

import pytest

from orchestration.plan import required_nodes
from tests.orchestration.conftest import Graph, Run


def test_status_shows_current_stale_and_missing(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    state = own_graph.state.root
    code, out, error = run("status", "--state", state)
    assert (code, error) == (0, "")
    assert "stale" not in out
    assert "missing" not in out
    best = {key: f"{own_graph.store.require(f'finetuned_model/{key}').metadata['map']:.4f}" for key in ("one", "two")}
    ensemble = f"{own_graph.store.require('ensemble_weights').metadata['map_at_100000']:.4f}"
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert rows["one"] == ["current", "current", "2/2", "2/2", "2/2", best["one"]]
    assert rows["two"] == ["current", "current", "3/3", "3/3", "2/2", best["two"]]
    assert rows["segment_shards"] == rows["submission"] == ["current"]
    assert rows["ensemble_weights"] == ["current", ensemble]
    assert set(rows) - {"recipe"} == {
        "one",
        "two",
        *(node.asset for node in required_nodes(own_graph.recipe) if not node.model),
    }
    own_graph.store.delete("test_predictions/two/shift+1")
    (tmp_path / "tiny.py").write_text(
        "from dataclasses import replace\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
        "fine = replace(RECIPE.models[0].finetuning, learning_rate=1e-4)\n"
        "RECIPE = replace(RECIPE, models=(replace(RECIPE.models[0], finetuning=fine), RECIPE.models[1]))\n"
    )
    out = run("status", "--state", state)[1]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert rows["one"] == ["current", "stale", *("stale", "0/2") * 3], "its MAP is that of another recipe"
    assert rows["two"] == ["current", "current", "3/3", "missing", "2/3", "stale", "1/2", best["two"]]
    assert rows["submission"] == ["stale"]
    assert "stale  finetuned_model/one: training.learning_rate: 0.001 -> 0.0001\n" in out
    assert "stale  test_predictions/two/shift+1: not materialised\n" in out


def test_ablate_prints_a_table_or_json(run: Run, graph: Graph, tmp_path: Path) -> None:
    code, out, _ = run("ablate", "--state", graph.state.root, "--no-tracking")
    assert code == 0
    assert "What each switch is worth, recipe tiny" in out
    assert "each model's own *" in out
    page = tmp_path / "new" / "ablation.html"
    code, out, _ = run("ablate", "--state", graph.state.root, "--no-tracking", "--json", "--html", page)
    assert page.read_text().count("<th scope=row>") == len(json.loads(out)["effects"])
    code, _, error = run("ablate", "--state", graph.state.root, "--no-tracking", "--html", tmp_path)
    assert code == 1
    assert f"{tmp_path}: is a folder" in error
    figures = json.loads(out)
    assert {row["stage"] for row in figures["effects"]} >= {"shifts", "trimming", "fusion", "weights", "loss"}
    assert "mlflow_run_id" not in figures
    code, out, error = run("ablate", "--state", tmp_path / "empty", "--no-tracking")
    assert (code, out) == (1, "")
    assert "holdout_ratings" in error


def test_materialize_again_says_that_nothing_was_to_do_and_shows_the_result(run: Run, graph: Graph) -> None:
    code, out, error = run("materialize", "--state", graph.state.root)
    assert code == 0
    assert "0 made" in error
    assert all(name in out for name in ("Tiny one", "Tiny two", "ensemble"))
    (submission,) = [line.split()[1] for line in out.splitlines() if line.startswith("submission")]
    (report,) = [line.split()[1] for line in out.splitlines() if line.startswith("report")]
    assert Path(submission).read_text().startswith("Class,Segments")
    assert Path(report).read_text().lower().startswith("<!doctype html")


def test_a_choice_of_models_says_where_it_stops(run: Run, own_graph: Graph, tmp_path: Path) -> None:
    code, out, error = run("materialize", "--models", "two", "--state", own_graph.state.root)
    assert (code, out) == (0, "")
    assert "stopped after test_ranking: weights, submission and leaderboard are made of all models" in error
    assert f'{{"base": "{tmp_path}/tiny.py", "model_keys": ["two"]}}' in error
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"base": "tiny.py", "model_keys": ["two"]}))
    code, _, error = run("materialize", "--until", "test_ranking", "--state", own_graph.state.root, recipe=str(own))
    assert code == 0
    assert "0 made" in error


def test_mlflow_is_silent_though_it_was_imported_before(
    run: Run, graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    logger = logging.getLogger("mlflow")
    logger.setLevel(logging.INFO)
    assert run("status", "--state", graph.state.root)[0] == 0
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.WARNING)
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "info")  # a person's choice stands
    assert run("status", "--state", graph.state.root)[0] == 0
    assert logger.level == logging.INFO
