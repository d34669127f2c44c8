"""`yt8m export` as a person meets it, and `score-submission --per-class`."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.orchestration.conftest import Graph, Run
from yt8m_assets.evaluation import Ratings, ranking_map
from yt8m_assets.ranking.files import RankingReader
from yt8m_assets.stages.ensemble import read_weights
from yt8m_assets.stages.training import load_model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_trained_model(run: Run, graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "one.pt2"
    code, out, error = run("export", "finetuned_model/one", path, "--state", graph.state.root)
    assert (code, error) == (0, "")
    assert out.startswith(f"{path}: finetuned_model/one, windows of 5 frames; at most ")
    frames, counts = torch.randint(0, 256, (2, 5, 1152), dtype=torch.uint8), torch.tensor([5, 2])
    found = torch.export.load(path).module()(frames, counts)
    model = load_model(graph.store, graph.store.require("finetuned_model/one"))
    assert found.shape == (2, model.num_classes)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_scores_of_rankings_and_of_the_submission(run: Run, graph: Graph, tmp_path: Path, suffix: str) -> None:
    """Best first, as the ranking and the submission list them."""
    path, state, read = tmp_path / f"scores.{suffix}", graph.state.root, getattr(pd, f"read_{suffix}")
    code, out, error = run("export", "test_ranking/two", path, "--state", state)
    assert code == 0, error
    ranking = RankingReader(graph.store.fetch(graph.store.require("test_ranking/two")))
    table = read(path)
    assert f"{path}: test_ranking/two, {len(table)} entries of 4 classes" in out
    assert list(table.columns) == ["class_id", "place", "video_id", "start", "score"]
    names = ranking.segments.ids()
    for class_id, part in table.groupby("class_id"):
        segment, score = ranking.entries(int(class_id))
        assert part["place"].tolist() == list(range(1, len(segment) + 1))
        assert [f"{row.video_id}:{row.start}" for row in part.itertuples()] == names[segment].tolist()
        np.testing.assert_array_equal(part["score"].to_numpy(np.float32), score)
    assert run("export", "submission", path, "--state", state)[0] == 0
    listed = (graph.store.fetch(graph.store.require("submission")) / "submission.csv").read_text().splitlines()[1:]
    table = read(path)
    for line in listed:
        class_id, ids = line.split(",")
        part = table[table["class_id"] == int(class_id)]
        assert [f"{row.video_id}:{row.start}" for row in part.itertuples()] == ids.split(" ")
        assert part["score"].is_monotonic_decreasing
    assert run("export", "oof_predictions/one/shift+1", path, "--state", state)[0] == 0


def test_average_precision_by_class(run: Run, graph: Graph, tmp_path: Path) -> None:
    """Each column's mean is the MAP that the leaderboard shows; the leaderboard's own file holds the same."""
    path, store = tmp_path / "classes.csv", graph.store
    code, out, error = run("export", "leaderboard", path, "--state", graph.state.root)
    assert code == 0, error
    assert "average precision of ensemble, one, two" in out
    table = rows(path)
    ratings = Ratings.read_csv(store.fetch(store.require("holdout_ratings")) / "ratings.csv")
    for key in ("one", "two"):
        found = ranking_map(RankingReader(store.fetch(store.require(f"oof_ranking/{key}"))), ratings)
        assert {int(row["class_id"]): float(row[key]) for row in table} == found.per_class
        assert [int(row["num_positives"]) for row in table] == list(found.num_positives.values())
    weights = read_weights(store.fetch(store.require("ensemble_weights")))
    assert np.mean([float(row["ensemble"]) for row in table]) == pytest.approx(weights["map"])
    assert all(row["name"] and int(row["num_train_videos"]) >= 0 for row in table)
    assert sum(int(row["num_ratings"]) for row in table) <= len(ratings)
    published = store.fetch(store.require("leaderboard")) / "report" / "per_class.csv"
    assert published.read_bytes() == path.read_bytes()


def test_a_submission_by_class(run: Run, graph: Graph, tmp_path: Path) -> None:
    source = graph.store.fetch(graph.store.require("submission")) / "submission.csv"
    listed = {line.split(",")[0]: line.split(",")[1].split(" ") for line in source.read_text().splitlines()[1:]}
    ratings, path = tmp_path / "ratings.csv", tmp_path / "classes.csv"
    first, second = list(listed)[:2]
    lines = [f"{listed[first][0]},{first},1", f"{listed[second][0]},{second},0", f"{listed[second][1]},{second},1"]
    ratings.write_text("\n".join([*lines, f"{listed[first][0]},7,1", ""]))
    arguments = ("score-submission", source, "--ratings", ratings, "--per-class", path, "--state", graph.state.root)
    code, out, error = run(*arguments)
    assert (code, error) == (0, "")
    assert out.endswith(f"{path}\n")
    found = {row["class_id"]: (row["num_ratings"], row["num_positives"], row["submission"]) for row in rows(path)}
    expected = {first: ("1", "1", "1.0"), second: ("2", "1", "0.5")}
    assert found == expected | ({"7": ("1", "1", "0.0")} if "7" not in listed else {})


def test_what_cannot_be_exported_is_said(run: Run, graph: Graph, tmp_path: Path) -> None:
    for node, name, message in (
        ("finetuned_model", "a.pt2", "finetuned_model: one at a time; finetuned_model/one, finetuned_model/two"),
        ("holdout_ratings", "a.csv", "holdout_ratings: nothing that is exported; known: pretrained_model"),
        ("finetuned_model/one", "a.pt", "a model is written as .pt2 (torch.export) or .onnx"),
        ("submission", "a.xlsx", "scores are written as .csv or .parquet"),
        ("leaderboard", "a.parquet", "average precision by class is written as .csv"),
        ("fame", "a.csv", "'fame' is nothing of recipe 'tiny'"),
        ("oof_predictions/one/shift+2", "a.csv", "oof_predictions/one/shift+2 has not been materialised"),
    ):
        code, out, error = run("export", node, tmp_path / name, "--state", graph.state.root)
        assert (code, out) == (1, "")
        assert message in error
        assert error.count("\n") == 1
    code, _, error = run("export", "submission", tmp_path / "a.csv", "--frames", "5", "--state", graph.state.root)
    assert code == 1
    assert "--frames is for models" in error
    assert not list(tmp_path.glob("a.*"))
