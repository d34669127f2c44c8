"""The ablation on the tiny graph: its figures are those of the rankings, and of new passes where it redoes them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.graph import QUIET
from tests.memory_tracking import MemoryTracking
from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.ensemble import ORIGINAL_W0, average_scores, fuse
from yt8m_assets.ensemble.second_stage import cross_fitted
from yt8m_assets.errors import MissingArtifactError, ParentMismatchError
from yt8m_assets.evaluation import Ratings, bootstrap_map, paired_test, ranking_map
from yt8m_assets.ranking.files import read_ranking
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import SHIFTS
from yt8m_assets.reports.ablation import Effect, ablate, metrics
from yt8m_assets.reports.ablation_settings import (
    CANDIDATES,
    SHIFT_SETS,
    TRIMS,
    _weight_settings,
    loss_pairs,
    shift_label,
)
from yt8m_assets.stages.ensemble import search_ensemble
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.stages.ranking import rank_model
from yt8m_assets.tracking import NullTracking


@pytest.fixture
def searched(ranked_graph):
    recipe, store = ranked_graph
    search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    return ranked_graph


def run(graph, tracking=None):
    recipe, store = graph
    return ablate(recipe, store, tracking=tracking or NullTracking(), progress=QUIET, run_tags={"dagster_run_id": "x"})


def rows(figures, stage: str, subject: str = "ensemble") -> dict[str, dict]:
    found = [row for row in figures["effects"] if (row["stage"], row["subject"]) == (stage, subject)]
    return {row["setting"]: row for row in found}


def ranking(store, key: str):
    return read_ranking(store.fetch(store.require(key)))


def rank_again(recipe, store) -> None:
    cells = [(m.key, s) for m in recipe.models for s in m.shifts]
    predict_cells(recipe, store, "oof", cells, tracking=NullTracking(), progress=QUIET)
    for key in recipe.model_keys:
        rank_model(recipe, store, "oof", key, progress=QUIET)
    search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})


def ratings_of(store) -> Ratings:
    return Ratings.read_csv(store.fetch(store.require("holdout_ratings")) / "ratings.csv")


def test_the_rows_are_the_published_rankings_own_figures(searched):
    recipe, store = searched
    figures = run(searched)
    ratings = ratings_of(store)
    weights = json.loads((store.fetch(store.require("ensemble_weights")) / "weights.json").read_text())
    keys = list(recipe.model_keys)
    rankings = [ranking(store, f"oof_ranking/{key}") for key in keys]
    fused = fuse(rankings, [weights["weights"][key] for key in keys], weights["w0"])
    equal = fuse(rankings, [1.0, 1.0], ORIGINAL_W0)
    table = rows(figures, "weights")
    assert list(table) == ["equal", "the original's", "searched", "best single model"]
    assert table["searched"]["map"] == pytest.approx(weights["map"], abs=1e-12)
    assert table["equal"]["map"] == pytest.approx(weights["equal_map"], abs=1e-12)
    interval = bootstrap_map(fused, ratings, recipe.bootstrap_rounds, recipe.seed)
    test = paired_test(fused, equal, ratings, recipe.bootstrap_rounds, recipe.seed)
    got = table["searched"]
    assert (got["low"], got["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
    expected = (test.difference.value, test.difference.low, test.difference.high, test.p_value)
    assert (got["gain"], got["gain_low"], got["gain_high"], got["p_value"]) == pytest.approx(expected, abs=1e-12)
    assert got["in_recipe"]
    assert f"on unseen videos {weights['nested']['gain']:+.4f}" in got["note"]
    for key in keys:
        own = rows(figures, "shifts", key)
        plain = ranking_map(ranking(store, f"oof_predictions/{key}/shift+0"), ratings).map
        assert own["0"]["map"] == pytest.approx(plain, abs=1e-12)
        (recipes,) = [row for row in own.values() if row["in_recipe"]]
        published = ranking_map(ranking(store, f"oof_ranking/{key}"), ratings).map
        assert recipes["map"] == pytest.approx(published, abs=1e-12)
    assert rows(figures, "shifts")["each model's own"]["map"] == pytest.approx(weights["map"], abs=1e-12)


def test_averaged_scores_are_those_of_the_cells(searched):
    recipe, store = searched
    cells = [(m, s) for m in recipe.models for s in sorted(m.shifts)]
    lists = [ranking(store, f"oof_predictions/{m.key}/shift{s:+d}") for m, s in cells]
    expected = ranking_map(average_scores(lists, [1 / len(m.shifts) for m, _ in cells]), ratings_of(store)).map
    assert rows(run(searched), "fusion")["mean scores, equal weights"]["map"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("switches", "stage", "setting"),
    [
        ({"trim_start": 1, "trim_end": 1}, "trimming", "first 1 and last 1"),
        ({"candidate_classes": 2}, "candidates", "top 2"),
        ({"video_weight": 0.3}, "video", "weight 0.3"),
    ],
)
def test_a_switch_is_worth_what_a_pass_with_it_gives(searched, monkeypatch, switches, stage, setting):
    """Post-processing published lists gives the ranking that the recipe's field would have made."""
    recipe, store = searched
    monkeypatch.setattr("yt8m_assets.reports.ablation_settings.CANDIDATES", (2,))
    row = rows(run(searched), stage)[setting]
    weights = json.loads((store.fetch(store.require("ensemble_weights")) / "weights.json").read_text())
    changed = replace(recipe, prediction=replace(recipe.prediction, **switches))
    cells = [(m.key, s) for m in recipe.models for s in m.shifts]
    predict_cells(changed, store, "oof", cells, tracking=NullTracking(), progress=QUIET)
    lists = [rank_model(changed, store, "oof", key, progress=QUIET).manifest for key in recipe.model_keys]
    new = fuse(
        [read_ranking(store.fetch(manifest)) for manifest in lists],
        [weights["weights"][key] for key in recipe.model_keys],
        weights["w0"],
    )
    assert row["map"] == pytest.approx(ranking_map(new, ratings_of(store)).map, abs=1e-12)


def test_figures_from_cut_lists_are_called_approximate(searched):
    recipe, store = searched
    assert run(searched)["lists_are_whole"]
    changed = replace(recipe, prediction=replace(recipe.prediction, top_k=20))
    rank_again(changed, store)
    figures = run((changed, store))
    assert not figures["lists_are_whole"]
    assert rows(figures, "trimming")["first 1"]["note"].startswith("approximate: the lists are cut")
    assert rows(figures, "trimming")["off"]["note"] == ""


def test_cells_of_other_shifts_are_used_where_they_are_made(searched):
    recipe, store = searched
    assert "-1, 0, +1" not in rows(run(searched), "shifts", "one")
    predict_cells(recipe, store, "oof", [("one", -1)], tracking=NullTracking(), progress=QUIET)
    figures = run(searched)
    assert set(rows(figures, "shifts", "one")) == {"0", "0, +1", "-1, 0, +1"}
    assert "-1, 0, +1 for all" in rows(figures, "shifts")


def test_it_is_tracked_and_the_same_again(searched):
    tracking = MemoryTracking()
    figures = run(searched, tracking)
    (made,) = tracking.runs
    assert made.dicts["ablation.json"]["effects"] == figures["effects"]
    assert made.artifacts == [("", "ablation.html")]
    assert made.tags["dagster_run_id"] == "x"
    assert made.series("ablation/weights/ensemble/searched/gain")[0][1] == rows(figures, "weights")["searched"]["gain"]
    again = run(searched)
    assert {name: figures[name] for name in again} == again
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_what_is_missing_or_stale_is_named(searched):
    recipe, store = searched
    longer = replace(recipe, search=replace(recipe.search, num_trials=31))
    with pytest.raises(
        ParentMismatchError, match=r"is not up to date \(ensemble_weights: search\.num_trials: .* -> 31"
    ):
        run((longer, store))
    store.delete("ensemble_weights")
    with pytest.raises(MissingArtifactError, match="ensemble_weights"):
        run(searched)


def test_a_loss_that_was_not_trained_has_no_figure_but_a_recipe_file(searched, tmp_path):
    (row,) = rows(run(searched), "loss").values()
    assert row["map"] is None
    overlay = json.loads(row["note"][row["note"].index("{") :])
    assert set(overlay["models"]) == {"one", "two"}
    base = tmp_path / "mine.json"
    base.write_text(json.dumps(overlay | {"base": "demo", "models": {"bert_l2h12": overlay["models"]["one"]}}))
    assert load_recipe(base).model("bert_l2h12").finetuning.label_weighting == "rated"


def test_models_that_differ_in_the_loss_alone_are_compared():
    recipe = tiny_recipe()
    first, second = recipe.models
    rated = replace(second, shifts=first.shifts, finetuning=replace(first.finetuning, label_weighting="rated"))
    assert loss_pairs(replace(recipe, models=(first, rated))) == [(("one", "all"), ("two", "rated"))]
    assert not loss_pairs(replace(recipe, models=(first, replace(rated, shifts=(0,)))))
    assert not loss_pairs(replace(recipe, models=(first, tiny_model("two", first.shifts))))
    assert not loss_pairs(recipe)


def test_a_recipe_with_demotions_says_that_they_cannot_be_undone(searched):
    recipe, store = searched
    changed = replace(recipe, prediction=replace(recipe.prediction, trim_start=1))
    rank_again(changed, store)
    figures = run((changed, store))
    for stage in ("trimming", "candidates"):
        (row,) = rows(figures, stage).values()
        assert row["map"] is None
        assert '"trim_start": 0' in row["note"]


def test_names_of_settings_and_metrics():
    assert shift_label((1, 0, -2)) == "-2, 0, +1"
    row = Effect(stage="shifts", subject="one", setting="-1, 0, +1", map=0.5, gain=0.1)
    assert metrics([row]) == {"ablation/shifts/one/-1 0 1/map_at_100000": 0.5, "ablation/shifts/one/-1 0 1/gain": 0.1}


def test_shrunk_weights_stand_beside_the_search_s_own():
    found = {
        "best_single": {"key": "one"},
        "nested": {"gain": 0.01, "gain_standard_error": 0.02},
        "searched": {"weights": {"one": 1.0, "two": 0.0}, "w0": 3.0},
        "shrinking": {"amount": 0.5, "reason": "so"},
    }
    equal = {"one": 1.0, "two": 1.0}
    fused = {(weights["one"], w0): f"{w0}" for weights, w0 in ((equal, 6.0), (found["searched"]["weights"], 3.0))}
    oof = SimpleNamespace(
        found=found,
        equal=equal,
        equal_w0=6.0,
        searched={"one": 0.75, "two": 0.25},
        w0=4.0,
        fused=lambda weights, w0: fused.get((weights["one"], w0)),
        ranking=lambda key: key,
    )
    table = {setting.name: setting for setting in _weight_settings(tiny_recipe(), oof)}
    assert table["searched"].in_recipe
    assert table["searched"].note == "the search's, shrunk by 0.5 towards equal ones"
    assert table["searched, not shrunk"].ranking() == "3.0"
    assert "on unseen videos +0.0100" in table["searched, not shrunk"].note


def test_what_is_tried_beside_a_recipes_own_makes_sense() -> None:
    for shifts in SHIFT_SETS:
        assert list(shifts) == list(range(shifts[0], shifts[-1] + 1)), "neighbouring shifts, each once"
        assert set(shifts) <= set(SHIFTS)
    assert max(SHIFT_SETS, key=len) == SHIFTS
    for tried in (SHIFT_SETS, TRIMS, CANDIDATES):
        assert len(set(tried)) == len(tried)
    assert (0, 0) not in TRIMS


def test_a_second_stage_has_rows_of_its_own_and_spoils_no_other(ranked_graph):
    """Every fusion takes it in; where a row has other cells, it is fitted on those."""
    recipe, store = replace(ranked_graph[0], second_stage=True), ranked_graph[1]
    search_ensemble(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={})
    figures, ratings = run((recipe, store)), ratings_of(store)
    weights = json.loads((store.fetch(store.require("ensemble_weights")) / "weights.json").read_text())
    rankings = [ranking(store, f"oof_ranking/{key}") for key in recipe.model_keys]
    table = rows(figures, "second stage")
    equal = fuse(rankings, [1.0, 1.0], ORIGINAL_W0)
    assert table["off, equal weights"]["map"] == pytest.approx(ranking_map(equal, ratings).map, abs=1e-12)
    alone, _ = cross_fitted(rankings, ratings, recipe.seed)
    assert table["the second stage alone"]["map"] == pytest.approx(ranking_map(alone, ratings).map, abs=1e-12)
    assert table["weighed by the search"]["map"] == pytest.approx(weights["map"], abs=1e-12)
    assert table["weighed by the search"]["in_recipe"]
    own = rows(figures, "shifts")["each model's own"]
    assert own["map"] == pytest.approx(weights["map"], abs=1e-12)
    assert not rows(run_plain(ranked_graph), "second stage")


def run_plain(graph):
    search_ensemble(*graph, tracking=NullTracking(), progress=QUIET, run_tags={})
    return run(graph)
