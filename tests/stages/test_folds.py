"""Folds: every rated video that is trained on is ranked by a model that never saw it; the second stage learns of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.graph import QUIET, make_lists, open_store
from tests.memory_tracking import MemoryTracking
from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.data.dataset.packed import Fold
from yt8m_assets.ensemble.second_stage import SecondStage, fit_second_stage
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.evaluation import Ratings
from yt8m_assets.ranking.files import Ranking, RankingReader, write_ranking
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages import folds as module
from yt8m_assets.stages.collection import find_dropped
from yt8m_assets.stages.ensemble import read_weights, search_ensemble, with_second_stage
from yt8m_assets.stages.folds import merge_folds, rank_folds
from yt8m_assets.stages.indexing import read_video_ids
from yt8m_assets.stages.lineage import Lineage, current_manifest, resolve_inputs
from yt8m_assets.stages.nodes import Node, all_nodes, config_slice, nodes, parents
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.stages.ranking import rank_model
from yt8m_assets.stages.training import finetune, make_job, pretrain
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking
from yt8m_assets.training.interruption import TrainingPreempted

OPTIONS = {"tracking": NullTracking(), "progress": QUIET, "run_tags": {}}
PLAIN = tiny_recipe(models=(tiny_model("one", (0, 1)),))
FOLDED = replace(PLAIN, second_stage=True, folds=2)
NODE = Node("fold_ranking", "one")

Graph = tuple[Recipe, ArtifactStore]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with data and a pre-trained model."""
    folder = tmp_path_factory.mktemp("folds")
    store = open_store(folder)
    make_lists(FOLDED, store)
    pretrain(FOLDED, store, "one", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def completed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all that the search needs."""
    folder = tmp_path_factory.mktemp("completed")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    store = open_store(folder)
    finetune(FOLDED, store, "one", **OPTIONS)
    predict_cells(FOLDED, store, "oof", [("one", 0), ("one", 1)], tracking=NullTracking(), progress=QUIET)
    rank_model(FOLDED, store, "oof", "one", progress=QUIET)
    rank_folds(FOLDED, store, "one", **OPTIONS)
    return folder


@pytest.fixture
def graph(prepared: Path, tmp_path: Path) -> Graph:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return FOLDED, open_store(tmp_path)


@pytest.fixture
def complete(completed: Path, tmp_path: Path) -> Graph:
    shutil.copytree(completed, tmp_path, dirs_exist_ok=True)
    return FOLDED, open_store(tmp_path)


def ids(store: ArtifactStore, held_out: bool) -> set[str]:
    found = read_video_ids(store, store.require("segment_shards"), held_out=held_out)
    return {name.decode() for names in found.values() for name in names.tolist()}


def test_every_video_is_in_one_fold_whatever_else_there_is() -> None:
    names = np.array([f"v{number:03d}" for number in range(300)], "S11")
    inside = np.stack([Fold(number=n, count=5, inside=True).means(names) for n in range(5)])
    outside = np.stack([Fold(number=n, count=5, inside=False).means(names) for n in range(5)])
    assert (inside.sum(axis=0) == 1).all()
    assert (inside != outside).all()
    assert inside.sum(axis=1).min() > 40
    assert (Fold(number=3, count=5, inside=True).means(names[7:9]) == inside[3, 7:9]).all()


def test_a_fold_is_ranked_by_a_model_that_was_not_trained_on_it(graph: Graph) -> None:
    recipe, store = graph
    tracking = MemoryTracking()
    manifest = rank_folds(recipe, store, "one", **{**OPTIONS, "tracking": tracking}).manifest
    ranking = RankingReader(store.fetch(manifest))
    assert set(ranking.segments.video_ids.tolist()) == ids(store, held_out=False)
    for class_id in ranking.class_ids.tolist():
        segment, score = ranking.entries(class_id)
        assert sorted(segment.tolist()) == list(range(len(ranking.segments)))
        assert (np.diff(score) <= 0).all()
    ratings = Ratings.read_csv(store.fetch(manifest) / "ratings.csv")
    assert set(ratings.video_ids[ratings.video].tolist()) <= ids(store, held_out=False)
    assert sum(fold["num_videos"] for fold in manifest.metadata["folds"]) == len(ranking.segments.video_ids)
    assert [value for _, value in tracking.runs[0].series("fold/map_at_100000")] == [
        fold["map"] for fold in manifest.metadata["folds"]
    ]
    seen = []
    for number in range(2):
        fold = Fold(number=number, count=2, inside=True)
        data = make_job(recipe, store, resolve_inputs(recipe, store, NODE), False, fold).data
        trained = set(data.segments(data.shards).video_ids)
        names = np.array(sorted(trained), "S11")
        assert trained
        assert not fold.means(names).any()
        seen.append(trained)
    assert not seen[0] & seen[1]
    assert rank_folds(recipe, store, "one", **OPTIONS).reused


def test_a_planted_leak_ends_the_training_of_a_fold(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be left out of a training is not."""
    monkeypatch.setattr(Fold, "means", lambda self, names: np.ones(len(names), bool))
    with pytest.raises(DataError, match=r"are both held out and trained on: .*fold 0 of 2"):
        rank_folds(*graph, "one", **OPTIONS)


def test_an_interrupted_run_goes_on_with_its_fold_and_leaves_no_checkpoint(
    complete: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, store = complete
    whole = store.require(NODE.key)
    run, steps = module.run_pass, []

    def stopped(trainings, stop, device, config):
        steps.append(len(steps))
        if len(steps) == 2:
            stop.set()
        return run(trainings, stop, device, config)

    monkeypatch.setattr(module, "run_pass", stopped)
    again = store.making_again([NODE.key])
    with pytest.raises(TrainingPreempted):
        rank_folds(recipe, again, "one", **OPTIONS)
    assert store.list_keys("checkpoints/fold_ranking-0/one")
    dropped = find_dropped([replace(recipe, models=(tiny_model("two", (0,)),))], store)
    assert any(one.key.startswith("checkpoints/fold_ranking-0/one/step-") for one in dropped)
    monkeypatch.setattr(module, "run_pass", run)
    resumed = rank_folds(recipe, again, "one", **OPTIONS).manifest
    assert resumed.files["ranking.parquet"] == whole.files["ranking.parquet"]
    assert not store.list_keys("checkpoints/fold_ranking-0/one")


def test_the_second_stage_is_fitted_on_the_folds_and_ranks_the_hold_out(complete: Graph) -> None:
    recipe, store = complete
    found = read_weights(store.fetch(search_ensemble(recipe, store, **OPTIONS).manifest))
    folder = store.fetch(store.require(NODE.key))
    stage = SecondStage.from_json(found["second_stage"])
    ratings = Ratings.read_csv(folder / "ratings.csv")
    assert stage == fit_second_stage([RankingReader(folder)], ratings)
    assert stage.fitted_on <= ids(store, held_out=False)
    oof = {"one": RankingReader(store.fetch(store.require("oof_ranking/one")))}
    staged = with_second_stage(recipe, oof, ratings, found)["second_stage"]
    assert set(staged.segments.video_ids.tolist()) == ids(store, held_out=True)


def test_folds_that_hold_a_held_out_video_make_no_ensemble(complete: Graph) -> None:
    """A leak, planted: a rating of the hold-out among those of the folds."""
    recipe, store = complete
    oof = RankingReader(store.fetch(store.require("oof_ranking/one")))
    ratings = store.fetch(store.require("holdout_ratings")) / "ratings.csv"
    inputs = resolve_inputs(recipe, store, NODE)
    with store.making_again([NODE.key]).publish(NODE.key, **inputs.publish_arguments()) as publication:
        write_ranking(oof, publication.path)
        (publication.path / "ratings.csv").write_bytes(ratings.read_bytes())
    with pytest.raises(DataError, match="scored by what was fitted on their own ratings"):
        search_ensemble(recipe, store, **OPTIONS)


def test_a_video_in_two_folds_is_refused(tmp_path) -> None:
    first, second = Ranking.from_dict({3: ["a:0", "b:5"]}), Ranking.from_dict({3: ["b:5", "c:0"]})
    with pytest.raises(DataError, match="more than one of them"):
        merge_folds([first, second], tmp_path)


def test_lists_are_merged_by_places_in_their_own(tmp_path) -> None:
    first = Ranking.from_dict({3: ["a:0", "b:0"], 4: ["b:0", "a:0"]})
    second = Ranking.from_dict({3: ["c:5", "c:0", "c:10", "c:15"]})
    merge_folds([first, second], tmp_path)
    merged = RankingReader(tmp_path)
    assert merged.segments.ids()[merged.entries(3)[0]].tolist() == ["c:5", "a:0", "c:0", "c:10", "b:0", "c:15"]
    assert merged.segments.ids()[merged.entries(4)[0]].tolist() == ["b:0", "a:0"]
    assert merged.entries(3)[1][0] == pytest.approx(np.log(3.5 / 0.5))


def test_without_folds_no_node_and_no_fingerprint_changes(graph: Graph) -> None:
    """What a plain recipe made stays current, and one with folds makes anew what comes after the search alone."""
    plain, store = replace(FOLDED, folds=0), graph[1]
    assert NODE not in all_nodes(plain)
    assert not nodes(plain, "fold_ranking")
    assert nodes(FOLDED, "fold_ranking") == (NODE,)
    for node in all_nodes(plain):
        assert config_slice(plain, node) == config_slice(FOLDED, node)
        assert NODE not in parents(plain, node)
    assert [node.asset for node in all_nodes(FOLDED) if NODE in parents(FOLDED, node)] == [
        "ensemble_weights",
        "leaderboard",
    ]
    fingerprints = [Lineage(one, store).inputs(Node("finetuned_model", "one")).fingerprint for one in (plain, FOLDED)]
    assert fingerprints[0] == fingerprints[1]
    assert all(not load_recipe(name).folds for name in ("demo", "challenge"))


def test_what_is_left_of_folds_is_found_when_their_model_is_dropped(complete: Graph) -> None:
    recipe, store = complete
    assert current_manifest(recipe, store, NODE) is not None
    assert not [one for one in find_dropped([recipe], store) if one.key == NODE.key]
    other = replace(recipe, models=(tiny_model("two", (0,)),))
    assert NODE.key in {one.key for one in find_dropped([other], store)}


def test_folds_are_refused_where_nothing_uses_them() -> None:
    with pytest.raises(ConfigError, match=r"folds = 1: must be at least 2"):
        replace(FOLDED, folds=1)
    with pytest.raises(ConfigError, match="folds = 2: only second_stage uses them"):
        replace(PLAIN, folds=2)
