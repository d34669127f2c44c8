"""The leaderboard over a whole tiny graph: figures that agree with the artifacts, one page, one table."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.graph import QUIET, open_store
from tests.memory_tracking import MemoryTracking
from tests.tiny import tiny_recipe
from yt8m_assets.data.simulation.truth import test_ratings as hidden_ratings
from yt8m_assets.errors import DataError, MissingArtifactError, SubmissionError
from yt8m_assets.evaluation import Ratings
from yt8m_assets.evaluation.picking import PickingOptimism, picking_optimism
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.reports.figures import _ceiling, agreement
from yt8m_assets.reports.leaderboard import (
    figures_table,
    leaderboard_table,
    make_leaderboard,
    markdown_table,
    read_leaderboard,
    write_own_report,
)
from yt8m_assets.reports.page import picking_remark, remarks, table_columns, table_rows, write_page
from yt8m_assets.reports.timeline import draw_timeline, find_video, make_timeline, score_seconds
from yt8m_assets.stages.ensemble import search_ensemble
from yt8m_assets.stages.submission import make_submission
from yt8m_assets.stages.variants import Variant, keep_variant, train_variant
from yt8m_assets.tracking import NullTracking


def publish(graph, tracking=None):
    return make_leaderboard(*graph, tracking=tracking or NullTracking(), progress=QUIET, run_tags={})


@pytest.fixture(scope="module")
def finished(_ranked_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Recipe and store of a whole graph, its leaderboard published, and what was tracked meanwhile."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(_ranked_folder, folder, dirs_exist_ok=True)
    recipe, store, tracking = tiny_recipe(), open_store(folder), MemoryTracking()
    search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    make_submission(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    publish((recipe, store), tracking)
    return recipe, store, tracking


@pytest.fixture
def finished_graph(finished):
    """Recipe and store of the whole graph."""
    return finished[:2]


def test_leaderboard_agrees_with_the_artifacts(finished):
    recipe, store, tracking = finished
    result = publish((recipe, store))
    assert result.reused
    figures = read_leaderboard(recipe, store)
    for row in figures["models"]:
        ranking = store.require(f"oof_ranking/{row['key']}").metadata
        assert row["map_with_tta"] == pytest.approx(ranking["map_at_100000"])
        assert row["map_without_tta"] == pytest.approx(ranking["map_without_tta"])
        assert row["interval"]["low"] <= row["map_with_tta"] <= row["interval"]["high"]
        assert row["parameters"] == store.require(f"finetuned_model/{row['key']}").metadata["parameters"]
        for shift, value in row["map_by_shift"].items():
            cell = store.require(f"oof_predictions/{row['key']}/shift{shift}").metadata
            assert value == pytest.approx(cell["map_at_100000"])
    weights = store.require("ensemble_weights").metadata
    assert figures["ensemble"]["map"] == pytest.approx(weights["map_at_100000"])
    assert sum(row["weight"] for row in figures["models"]) == pytest.approx(1)
    holdout = figures["simulated"]["holdout"]
    assert 0 < holdout["random"] < holdout["oracle"] <= 1
    expected = (figures["ensemble"]["map"] - holdout["random"]) / (holdout["oracle"] - holdout["random"])
    assert holdout["norms"]["ensemble"] == pytest.approx(expected)
    assert set(figures["simulated"]["test"]["maps"]) == {"ensemble", "one", "two"}
    assert result.manifest.metadata["holdout_norm"] == pytest.approx(expected)
    precisions = [row["average_precision"] for row in figures["classes"]]
    assert precisions == sorted(precisions, reverse=True)
    assert np.mean(precisions) == pytest.approx(figures["ensemble"]["map"])
    assert {("", "leaderboard.html"), ("", "leaderboard.json")} <= set(tracking.runs[0].artifacts)


def test_the_run_of_the_report_says_what_was_measured_on_what(finished):
    recipe, store, tracking = finished
    (run,), figures = tracking.runs, read_leaderboard(recipe, store)
    parents = {name: store.require(name) for name in ("holdout_ratings", "test_shards")}
    assert {each["context"]: (each["name"], each["digest"]) for each in run.datasets} == {
        "holdout": ("holdout_ratings", parents["holdout_ratings"].digest),
        "test": ("test_shards", parents["test_shards"].digest),
    }
    assert run.tags["parent.finetuned_model/one"] == store.require("finetuned_model/one").digest
    scores = {name: value for name, value, _ in run.metrics}
    assert scores["holdout/map_at_100000"] == figures["ensemble"]["map"]
    assert scores["holdout/one"] == next(row["map_with_tta"] for row in figures["models"] if row["key"] == "one")
    assert scores["test/two"] == figures["simulated"]["test"]["maps"]["two"]
    (model,) = run.record.checkpoints
    assert model["metrics"] == {
        "holdout/map_at_100000": figures["ensemble"]["map"],
        "test/map_at_100000": figures["simulated"]["test"]["maps"]["ensemble"],
    }
    table = run.dicts["per_class.json"]
    found = {row[0]: row[5] for row in table["data"]}
    assert table["columns"][5:] == ["ensemble", "one", "two"]
    assert found == pytest.approx({row["class_id"]: row["average_precision"] for row in figures["classes"]})


def test_the_report_says_that_checkpoints_were_picked_on_these_ratings(finished_graph):
    figures = read_leaderboard(*finished_graph)
    for row in figures["models"]:
        assert row["picking"] == {"num_candidates": 2, "optimism": pytest.approx((0.1 + 0.02) / 2), "num_divisions": 1}
    rows = [
        row | {"picking": {"num_candidates": 3, "optimism": value, "num_divisions": 8}}
        for row, value in zip(figures["models"], (0.004, 0.002), strict=True)
    ]
    text = picking_remark(figures | {"models": rows})
    assert "best of up to 3 checkpoints" in text
    assert "by 0.0030 on average, at most 0.0040 (Tiny one)" in text
    assert text in remarks(figures | {"models": rows})
    rows[0]["picking"]["optimism"] = rows[1]["picking"]["optimism"] = None
    assert "cannot be said" in picking_remark(figures | {"models": rows})
    rows[0]["picking"]["num_candidates"] = rows[1]["picking"]["num_candidates"] = 1
    assert "No model's weights were picked" in picking_remark(figures | {"models": rows})


def test_the_oracle_sees_all_of_the_data_whatever_the_models_see(finished_graph):
    recipe, store = finished_graph
    shards, hidden = store.require("test_shards"), hidden_ratings(recipe.data.simulation)
    expected = _ceiling(recipe, store, shards, hidden, QUIET)
    rgb_alone = replace(recipe, data=replace(recipe.data, feature_sizes=(1024, 0)))
    assert _ceiling(rgb_alone, store, shards, hidden, QUIET) == expected


def test_the_page_needs_no_other_file(finished_graph):
    _, store = finished_graph
    manifest = publish(finished_graph).manifest
    page = (store.fetch(manifest) / "report" / "leaderboard.html").read_text()
    assert "Tiny one" in page
    assert page.count("data:image/png;base64,") == 6
    assert not re.search(r"src='(?!data:)", page)
    assert not re.search(r"href='(?!https?://)", page)
    assert "<link" not in page
    assert "<script" not in page


def test_the_page_fits_a_phone_is_sorted_and_says_where_it_is_from(finished_graph):
    recipe, store = finished_graph
    manifest = publish(finished_graph).manifest
    page = (store.fetch(manifest) / "report" / "leaderboard.html").read_text()
    assert "<meta name=viewport content='width=device-width, initial-scale=1'>" in page
    assert re.search(r"<dt>made</dt><dd>20\d\d-\d\d-\d\d \d\d:\d\d UTC</dd>", page)
    assert re.search(r"<dt>code</dt><dd>yt8m-assets .*commit [0-9a-f]{40}</dd>", page)
    assert f"recipe</dt><dd>{recipe.name}, fingerprint {manifest.fingerprint[:16]}" in page
    assert store.uri(store.require("submission")) in page
    assert page.count("<div class=wide><img ") == page.count("<img ")  # a picture scrolls, instead of becoming a stamp
    texts = re.findall("<img alt='([^']*)'", page.replace("&#x27;", ""))
    assert len(texts) == 6
    assert all(re.search(r"\d", text) for text in texts[:5])  # what is seen, in numbers
    titles = re.findall("<th scope=row>(Tiny [a-z]+|ensemble)</th>", page)
    rows = {row["title"]: row["map_with_tta"] for row in read_leaderboard(recipe, store)["models"]}
    assert titles == [*sorted(rows, key=lambda title: -rows[title]), "ensemble"]


def test_raters_verdicts_differ_by_more_than_red_and_green(tmp_path):
    """In pixels: on a grey scale, and for who sees no red or green, yes and no are still two things."""
    from matplotlib.image import imread

    shades = []
    for verdict in (0, 1):
        row = {"name": "a class", "class_id": 1, "probabilities": [0.0] * 20, "ratings": [[0, verdict]]}
        draw_timeline({"video_id": "abcd", "seconds": 20, "classes": [row]}, tmp_path / "picture.png")
        pixels = (imread(tmp_path / "picture.png")[..., :3] * 255).round().astype(int).reshape(-1, 3)
        coloured = pixels[np.ptp(pixels, axis=1) > 60]
        assert len(coloured) > 100
        shades.append(np.median(coloured, axis=0))
    no, yes = shades
    assert abs(no.mean() - yes.mean()) > 15
    assert abs(no[2] - yes[2]) > 100  # blue is seen by all


def test_runs_are_linked_by_address_alone(finished_graph, tmp_path):
    figures = read_leaderboard(*finished_graph)
    links = {"run of a": "http://127.0.0.1:5000/#/experiments/1/runs/a", "run of b": "javascript:alert(1)"}
    write_page(figures, {}, tmp_path / "page.html", {"made": "<now>"}, links)
    page = (tmp_path / "page.html").read_text()
    assert "<a href='http://127.0.0.1:5000/#/experiments/1/runs/a'>" in page
    assert "javascript" not in page
    assert "&lt;now&gt;" in page


def test_a_redo_gives_the_same_content(finished_graph):
    _, store = finished_graph
    first = publish(finished_graph).manifest
    store.delete("leaderboard")
    assert publish(finished_graph).manifest.digest == first.digest


def test_the_terminal_table_shows_models_and_ensemble(finished_graph, graph):
    from rich.console import Console

    recipe, store = finished_graph
    with pytest.raises(MissingArtifactError, match="leaderboard"):
        leaderboard_table(graph[1], recipe)
    console = Console(width=160, file=io.StringIO())
    console.print(leaderboard_table(store, recipe))
    text = console.file.getvalue()
    for word in ("Tiny one", "Tiny two", "ensemble", "oracle", "norm"):
        assert word in text
    assert markdown_table(read_leaderboard(recipe, store)).count("\n") == 4


def test_real_data_has_no_ceiling_to_show(finished_graph, tmp_path):
    from yt8m_assets.reports.plots import draw_leaderboard

    recipe, store = finished_graph
    figures = read_leaderboard(recipe, store) | {"simulated": None}
    figures["classes"][0]["name"] = "<b>Tom & Jerry</b>"
    assert "norm" not in table_columns(figures)
    assert {len(row) for row in table_rows(figures)} == {len(table_columns(figures))}
    assert not any("oracle" in line for line in remarks(figures))
    write_page(figures, draw_leaderboard(figures, tmp_path), tmp_path / "page.html")
    assert "&lt;b&gt;Tom &amp; Jerry&lt;/b&gt;" in (tmp_path / "page.html").read_text()


def test_names_are_taken_for_nothing_but_names(finished_graph, tmp_path):
    """A console's markup, a picture's formulas and Markdown's columns: a title or a class may hold their signs."""
    from rich.console import Console

    from yt8m_assets.reports.plots import draw_leaderboard

    figures = read_leaderboard(*finished_graph)
    title = r"A$AP [/x] $\frac [red] | b"
    figures |= {"recipe": "mine [/x]", "models": [row | {"title": title} for row in figures["models"]]}
    figures["classes"] = [row | {"name": title} for row in figures["classes"]]
    console = Console(width=250, file=io.StringIO())
    console.print(figures_table(figures))
    assert console.file.getvalue().count(title) == 4  # two models, and two remarks
    assert "recipe mine [/x]" in console.file.getvalue()
    assert len({line.replace(r"\|", "").count("|") for line in markdown_table(figures).splitlines()}) == 1
    assert all(path.stat().st_size for path in draw_leaderboard(figures, tmp_path).values())


def test_only_what_was_compared_counts_as_picked(finished_graph):
    """With keep_best=False the last weights are published, or an average: the other evaluations chose nothing."""
    from yt8m_assets.reports.figures import _candidates
    from yt8m_assets.training.model_files import TRAINING

    _, store = finished_graph
    manifest = store.require("finetuned_model/one")
    assert len(_candidates(store, manifest)) == 2
    training = json.loads((store.fetch(manifest) / TRAINING).read_text())
    last, ema = {"map": 0.5, "half_0a": 0.5, "half_0b": 0.58}, {"map": 0.4}
    training["candidates"] = {"last": last, "ema": ema, "swa": None}
    with store.publish("finetuned_model/last", fingerprint="") as publication:
        (publication.path / TRAINING).write_text(json.dumps(training))
    assert _candidates(store, publication.manifest) == [last, ema]
    training["candidates"] = {"best": {"map": 0.6}}  # as it was written before halves were scored
    training["evaluations"] = [{"step": step, "map": 0.5 + step / 100} for step in (5, 10)]
    with store.publish("finetuned_model/older", fingerprint="") as publication:
        (publication.path / TRAINING).write_text(json.dumps(training))
    older = _candidates(store, publication.manifest)
    assert older == [{"map": 0.55}, {"map": 0.6}]
    assert picking_optimism(older) == PickingOptimism(num_candidates=2, optimism=None, num_divisions=0)


def test_where_nothing_can_be_compared_the_agreement_is_0():
    names = [f"video{number}:0" for number in range(3)]
    rankings = {key: Ranking.from_dict({0: names[:1], 1: names[1:2], 2: names[2:]}) for key in "ab"}
    ratings = Ratings.from_dict({(name, class_id): 1 for class_id, name in enumerate(names)})
    np.testing.assert_array_equal(agreement(rankings, ratings, 100), np.eye(2))


def test_agreement_of_equal_and_reversed_rankings():
    names = [f"video{number}:0" for number in range(6)]
    ratings = Ratings.from_dict({(name, class_id): 1 for name in names for class_id in (3, 7)})
    forward = Ranking.from_dict({3: names, 7: names[::-1]})
    reverse = Ranking.from_dict({3: names[::-1], 7: names})
    matrix = agreement({"a": forward, "b": forward, "c": reverse}, ratings, 100)
    np.testing.assert_allclose(matrix, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)


def test_timeline_shows_the_probabilities_of_each_second(graph, tmp_path):
    from yt8m_assets.stages.data import read_segment_classes, read_shards

    recipe, store = graph
    from yt8m_assets.data import read_shard

    uri = read_shards(recipe, store, "segment_shards").uris()[0]
    video_id = next(iter(read_shard(uri))).video_id
    path = make_timeline(recipe, store, video_id, tmp_path, model_keys=["one"], num_classes=3)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert b"Software" not in path.read_bytes()  # another Matplotlib gives the same bytes for the same pixels
    content = json.loads((tmp_path / "timeline.json").read_text())
    classes = read_segment_classes(recipe, store)
    video = find_video(recipe, store, video_id)
    scores = score_seconds(recipe, store, video, ["one"], classes)
    assert content["seconds"] == len(video.frames) == len(scores)
    assert len(content["classes"]) == 3
    for row in content["classes"]:
        column = classes.tolist().index(row["class_id"])
        np.testing.assert_allclose(row["probabilities"], scores[:, column], atol=1e-5)
    rated = sum(len(row["ratings"]) for row in content["classes"])
    assert rated <= len(video.segments)
    with pytest.raises(DataError, match="nowhere"):
        make_timeline(recipe, store, "nowhere", tmp_path)


def test_ratings_from_outside_have_a_column_of_their_own(finished_graph, tmp_path):
    """The hidden ratings of the simulated test videos, given as a file would be: the figures of the simulation."""
    from rich.console import Console

    from orchestration.session import MIN_WIDTH
    from yt8m_assets.data.simulation.truth import test_ratings as hidden_ratings

    recipe, store = finished_graph
    ratings = Ratings.from_dict(hidden_ratings(recipe.data.simulation))
    page = write_own_report(recipe, store, tmp_path / "report", ("mine.csv", ratings))
    figures = json.loads(page.with_name("leaderboard.json").read_text())
    given = figures["given"]
    assert given["maps"] == pytest.approx(figures["simulated"]["test"]["maps"])
    assert given["interval"]["low"] <= given["maps"]["ensemble"] <= given["interval"]["high"]
    long = [row | {"title": "GatedNetVLAD (H1024 C16)", "parameters": 21_528_492} for row in figures["models"]]
    console = Console(width=MIN_WIDTH, file=io.StringIO())
    console.print(figures_table(figures | {"models": long}))
    assert "\u2026" not in console.file.getvalue()  # every column fits, the simulation's too
    real = figures | {"simulated": None}  # as it is where the data are real
    assert table_columns(real)[-1] == "given MAP"
    assert table_rows(real)[-1][-1] == f"{given['maps']['ensemble']:.4f}"
    assert any(f"{len(ratings):,} of mine.csv" in line for line in remarks(real))
    assert "given MAP" in page.read_text()
    assert "given" not in read_leaderboard(recipe, store)
    with pytest.raises(SubmissionError, match="other videos"):
        write_own_report(recipe, store, tmp_path / "other", ("x", Ratings.from_dict({("nowhere:0", 0): 1})))


def test_variants_have_rows_of_their_own(ranked_graph, tmp_path):
    recipe, store = ranked_graph
    wide = Variant(base="one", name="wide", settings={"overrides": {"intermediate_size": 16}})
    untrained = Variant(base="one", name="fast", settings={"finetuning": {"learning_rate": 0.1}})
    for variant in (wide, untrained):
        keep_variant(recipe, store, variant)
    train_variant(recipe, store, wide, tracking=NullTracking(), progress=QUIET, run_tags={})
    search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    make_submission(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    published = publish((recipe, store))
    page = write_own_report(recipe, store, tmp_path / "report", None, variants=True)
    figures = json.loads(page.with_name("leaderboard.json").read_text())
    row = figures["models"][-1]
    assert [each["key"] for each in figures["models"]] == ["one", "two", "one_wide"]
    assert row["map_with_tta"] == pytest.approx(store.require("oof_ranking/one_wide").metadata["map_at_100000"])
    assert row["weight"] == 0
    assert row["parameters"] > figures["models"][0]["parameters"]
    cells = next(cells for cells in table_rows(figures) if cells[0] == "Tiny one, wide")
    norm = figures["simulated"]["holdout"]["norms"]["one_wide"]
    assert cells[-3:] == ["0.00", f"{norm:.3f}", "-"]
    assert "Tiny one, wide" in page.read_text()
    assert publish((recipe, store)).manifest == published.manifest
    assert [each["key"] for each in read_leaderboard(recipe, store)["models"]] == ["one", "two"]


def test_the_leaderboards_ensemble_takes_a_second_stage_in(ranked_graph):
    recipe, store = replace(ranked_graph[0], second_stage=True), ranked_graph[1]
    found = search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={}).manifest.metadata
    make_submission(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    publish((recipe, store))
    figures = read_leaderboard(recipe, store)
    assert figures["ensemble"]["map"] == pytest.approx(found["map_at_100000"], abs=1e-12)
    assert [row["key"] for row in figures["models"]] == list(recipe.model_keys)
    assert "second_stage" in figures["ensemble"]["weights"]
