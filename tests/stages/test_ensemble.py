"""The ensemble stages: a search that is tracked and can be killed, and a submission that is valid."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.graph import QUIET
from tests.memory_tracking import MemoryTracking
from yt8m_assets.ensemble import fuse, second_stage
from yt8m_assets.ensemble.second_stage import (
    SECOND_STAGE,
    SecondStage,
    StagedRanking,
    cross_fitted,
    fit_second_stage,
)
from yt8m_assets.errors import DataError, MissingArtifactError
from yt8m_assets.evaluation import Ratings, ranking_map
from yt8m_assets.ranking.files import TOP_K, RankingReader
from yt8m_assets.stages.data import read_segment_classes
from yt8m_assets.stages.ensemble import read_weights, search_ensemble, with_second_stage
from yt8m_assets.stages.nodes import Node, config_slice
from yt8m_assets.stages.submission import fuse_models, make_submission
from yt8m_assets.submission import validate_submission
from yt8m_assets.tracking import MlflowTracking, NullTracking


def search(graph, tracking=None):
    recipe, store = graph
    options = {"tracking": tracking or NullTracking(), "progress": QUIET, "run_tags": {"dagster_run_id": "abc"}}
    return search_ensemble(recipe, store, **options)


def readers(graph, split: str) -> dict[str, RankingReader]:
    recipe, store = graph
    return {key: RankingReader(store.fetch(store.require(f"{split}_ranking/{key}"))) for key in recipe.model_keys}


def test_search_publishes_weights_that_give_the_map_it_names(ranked_graph):
    _, store = ranked_graph
    tracking = MemoryTracking()
    manifest = search(ranked_graph, tracking).manifest
    found = read_weights(store.fetch(manifest))
    ratings = Ratings.read_csv(store.fetch(store.require("holdout_ratings")) / "ratings.csv")
    rankings = readers(ranked_graph, "oof")
    fused = fuse(list(rankings.values()), [found["weights"][key] for key in rankings], found["w0"])
    assert ranking_map(fused, ratings).map == pytest.approx(found["map"], abs=1e-12)
    assert found["map"] >= max(found["single_maps"].values())
    assert found["searched"]["map"] >= found["equal_map"]
    metadata = manifest.metadata
    assert metadata["gain_over_best_single"] == pytest.approx(found["map"] - found["best_single"]["map"])
    assert {"report/convergence.png", "report/weights.png", "trials.jsonl"} <= set(manifest.files)
    (run,) = tracking.runs
    assert metadata["why_shrunk"] == found["shrinking"]["reason"]
    series = [value for _, value in run.series("trial/best_map_at_100000")]
    assert series == sorted(series)
    assert series[-1] == found["searched"]["map"]
    assert len(series) == len(run.series("trial/map_at_100000")) < metadata["num_trials"]
    assert run.tags["dagster_run_id"] == "abc"
    assert ("report", "convergence.png") in run.artifacts


def test_what_a_run_shows_first_are_the_published_numbers_not_the_last_trial_s(ranked_graph):
    _, store = ranked_graph
    tracking = MemoryTracking()
    found = read_weights(store.fetch(search(ranked_graph, tracking).manifest))
    latest = {name: value for name, value, _ in tracking.runs[0].metrics}
    assert latest["holdout/map_at_100000"] == found["map"]
    assert latest["holdout/searched_map_at_100000"] == found["searched"]["map"]
    assert latest["ensemble/w0"] == found["w0"]
    assert {key: latest[f"ensemble/weight/{key}"] for key in found["weights"]} == found["weights"]
    assert latest["ensemble/shrinking"] == found["shrinking"]["amount"]
    params = tracking.runs[0].params
    assert (float(params["best/map_at_100000"]), float(params["best/w0"])) == (found["map"], found["w0"])
    assert {key: float(params[f"best/weight/{key}"]) for key in found["weights"]} == found["weights"]


def test_search_again_is_reused_and_gives_the_same_bytes(ranked_graph):
    _, store = ranked_graph
    first = search(ranked_graph)
    assert search(ranked_graph).reused
    store.delete("ensemble_weights")
    assert search(ranked_graph).manifest.digest == first.manifest.digest


def test_a_search_that_was_stopped_goes_on_in_the_same_run(ranked_graph, mlflow_uri, tmp_path):
    from mlflow import MlflowClient

    class Stopping(MlflowTracking):
        """Stops the search at its fourth trial, as a kill would, once."""

        stopped = False

        def run(self, *args, **options):
            context = super().run(*args, **options)
            return context if self.stopped else _StopAt(self, context, 3)

    class _StopAt:
        def __init__(self, tracking, context, step):
            self.tracking, self.context, self.step = tracking, context, step

        def __enter__(self):
            run = self.context.__enter__()
            log = run.log_metrics

            def log_metrics(metrics, step):
                log(metrics, step)
                if step == self.step:
                    self.tracking.stopped = True
                    raise KeyboardInterrupt

            run.log_metrics = log_metrics
            return run

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    tracking = Stopping(mlflow_uri, artifact_location=str(tmp_path / "art"))
    with pytest.raises(KeyboardInterrupt):
        search(ranked_graph, tracking)
    assert ranked_graph[1].manifest("ensemble_weights") is None
    result = search(ranked_graph, tracking)
    client = MlflowClient(mlflow_uri)
    points = client.get_metric_history(result.manifest.metadata["mlflow_run_id"], "trial/map_at_100000")
    whole = json.loads((ranked_graph[1].fetch(result.manifest) / "weights.json").read_text())
    whole_run = MemoryTracking()
    ranked_graph[1].delete("ensemble_weights")
    search(ranked_graph, whole_run)
    assert sorted(point.step for point in points) == [step for step, _ in whole_run.runs[0].series(points[0].key)]
    assert client.get_run(result.manifest.metadata["mlflow_run_id"]).data.tags["attempt"] == "2"
    again = ranked_graph[1].require("ensemble_weights")
    assert json.loads((ranked_graph[1].fetch(again) / "weights.json").read_text()) == whole


def test_search_names_the_rankings_it_misses(ranked_graph):
    ranked_graph[1].delete("oof_ranking/one")
    with pytest.raises(MissingArtifactError, match="oof_ranking/one"):
        search(ranked_graph)


def test_models_are_fused_class_by_class_as_in_memory(ranked_graph):
    rankings = readers(ranked_graph, "oof")
    lazy = fuse_models(rankings, {"one": 0.3, "two": 0.7}, 2.0, 20)
    whole = fuse(list(rankings.values()), [0.3, 0.7], 2.0, 20)
    for class_id in whole.class_ids.tolist():
        for got, expected in zip(lazy.entries(class_id), whole.entries(class_id), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_submission_is_valid_and_is_the_fusion_of_the_test_rankings(ranked_graph):
    recipe, store = ranked_graph
    search(ranked_graph)
    tracking = MemoryTracking()
    result = make_submission(recipe, store, tracking=tracking, progress=QUIET, run_tags={})
    path = store.fetch(result.manifest) / "submission.csv"
    classes = read_segment_classes(recipe, store).tolist()
    assert validate_submission(path, classes) == []
    found = read_weights(store.fetch(store.require("ensemble_weights")))
    params = tracking.runs[0].params
    assert float(params["w0"]) == found["w0"]
    assert {key: float(params[f"weight/{key}"]) for key in found["weights"]} == found["weights"]
    rankings = readers(ranked_graph, "test")
    expected = fuse(list(rankings.values()), [found["weights"][key] for key in rankings], found["w0"]).to_dict()
    lines = path.read_text().splitlines()
    assert lines[0] == "Class,Segments"
    assert [int(line.split(",")[0]) for line in lines[1:]] == classes
    assert all(line.split(",")[1].split() == expected[int(line.split(",")[0])] for line in lines[1:])
    assert result.manifest.metadata["num_listed"] == sum(len(ids) for ids in expected.values())
    assert make_submission(recipe, store, tracking=NullTracking(), progress=QUIET, run_tags={}).reused


def test_a_second_stage_is_one_more_ranking_from_the_search_to_the_submission(ranked_graph):
    """Its out-of-fold ranking is weighed, what is fitted on all held-out ratings ranks the test videos."""
    recipe, store = ranked_graph
    staged = replace(recipe, second_stage=True)
    found = read_weights(store.fetch(search((staged, store)).manifest))
    assert set(found["weights"]) == {*recipe.model_keys, SECOND_STAGE} == set(found["single_maps"])
    assert found["shrinking"]["towards"] == "second stage alone"
    stage = SecondStage.from_json(found[SECOND_STAGE])
    oof = readers(ranked_graph, "oof")
    ratings = Ratings.read_csv(store.fetch(store.require("holdout_ratings")) / "ratings.csv")
    assert stage == fit_second_stage(list(oof.values()), ratings)
    ranking, _ = cross_fitted(list(oof.values()), ratings, recipe.seed)
    assert found["single_maps"][SECOND_STAGE] == pytest.approx(ranking_map(ranking, ratings).map, abs=1e-12)
    fused = fuse_models(with_second_stage(staged, oof, ratings, found), found["weights"], found["w0"], TOP_K)
    assert ranking_map(fused, ratings).map == pytest.approx(found["map"], abs=1e-12)

    made = make_submission(staged, store, tracking=NullTracking(), progress=QUIET, run_tags={}).manifest
    test = readers(ranked_graph, "test")
    expected = fuse_models(
        {**test, SECOND_STAGE: StagedRanking(list(test.values()), [stage])}, found["weights"], found["w0"], TOP_K
    )
    lines = (store.fetch(made) / "submission.csv").read_text().splitlines()[1:]
    listed = {int(line.split(",")[0]): line.split(",")[1].split() for line in lines}
    names = expected.segments.ids()
    assert listed == {c: names[expected.entries(c)[0]].tolist() for c in expected.class_ids.tolist()}


def test_a_second_stage_that_saw_a_test_video_makes_no_submission(ranked_graph, monkeypatch):
    """A leak, planted: the ratings that it is fitted on name a video that it is to rank."""
    recipe, store = ranked_graph
    staged = replace(recipe, second_stage=True)
    video = str(readers(ranked_graph, "test")["one"].segments.video_ids[0])
    fit = second_stage.fit_second_stage
    leaking = lambda *given: replace(fit(*given), fitted_on=frozenset({video}))  # noqa: E731
    monkeypatch.setattr(second_stage, "fit_second_stage", leaking)
    search((staged, store))
    with pytest.raises(DataError, match=f"fitted on their own ratings: {video}"):
        make_submission(staged, store, tracking=NullTracking(), progress=QUIET, run_tags={})


def test_without_a_second_stage_nothing_is_said_of_one(ranked_graph):
    recipe, store = ranked_graph
    node = Node("ensemble_weights")
    assert "second_stage" not in config_slice(recipe, node)
    assert config_slice(replace(recipe, second_stage=True), node)["second_stage"] is True
    assert "second_stage" not in read_weights(store.fetch(search(ranked_graph).manifest))
