"""What the checks find: each on a sound artifact and on one with exactly that fault."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.graph import make_lists
from tests.tiny import tiny_recipe
from yt8m_assets.data.dataset.packed import ROW
from yt8m_assets.ranking.files import Ranking, write_ranking
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages import audit
from yt8m_assets.stages.indexing import read_video_ids
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

CELL = Node("oof_predictions", "one", 0)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.fixture(scope="module")
def data(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store root with the data artifacts."""
    root = tmp_path_factory.mktemp("data")
    store = ArtifactStore(str(root), root / "cache")
    make_lists(recipe, store)
    return root


@pytest.fixture
def store(data: Path, tmp_path: Path) -> ArtifactStore:
    """A copy of it, to be changed."""
    for name in ("pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"):
        shutil.copytree(data / name, tmp_path / name)
    return ArtifactStore(str(tmp_path), tmp_path / "cache")


def put(store: ArtifactStore, key: str, files: dict[str, str], like: str | None = None) -> None:
    """Publish files, over a copy of those of `like`."""
    before = store.manifest(key)
    with store.publish(key, fingerprint=before.fingerprint if before else "new") as publication:
        if like is not None:
            manifest = store.require(like)
            shutil.copytree(store.fetch(manifest), publication.path, dirs_exist_ok=True)
        for name, text in files.items():
            (publication.path / name).write_text(text)


def take_back_hold_out(store: ArtifactStore) -> None:
    """Publish the pre-training shards as if none of their videos was held out, under the same fingerprint."""
    before = store.require("pretraining_shards")
    folder = store.fetch(before, tuple(before.files))
    with store.publish("pretraining_shards", fingerprint=before.fingerprint) as publication:
        shutil.copytree(folder, publication.path, dirs_exist_ok=True)
        shards = json.loads((folder / "shards.json").read_text())
        for shard in shards["shards"]:
            shard |= {"held_out": False, "num_held_out": 0}
        (publication.path / "shards.json").write_text(json.dumps(shards))
        ids = pd.read_parquet(folder / "video_ids.parquet")
        ids.assign(held_out=False).to_parquet(publication.path / "video_ids.parquet")
        for path in (publication.path / "index").glob("*.rows"):
            rows = np.fromfile(path, ROW)
            rows["num_frames"] &= 2**31 - 1
            rows.tofile(path)


def put_ranking(store: ArtifactStore, classes: list[int], change: str = "") -> None:
    """A ranking of all test segments for each class, with one fault."""
    names = [f"v{number:03d}:{5 * number}" for number in range(6)]
    ranking = Ranking.from_dict(dict.fromkeys(classes, names))
    score, segment = ranking.score.copy(), ranking.segment.copy()
    if change == "nan":
        score[2] = np.nan
    if change == "rising":
        score[1] = score[0] + 1
    if change == "twice":
        segment[1] = segment[0]
    values = {"class_ids": ranking.class_ids, "offsets": ranking.offsets, "segments": ranking.segments}
    with store.publish(CELL.key, fingerprint="f") as publication:
        write_ranking(Ranking(**values, score=score, segment=segment), publication.path)


def test_sound_data_passes(recipe: Recipe, store: ArtifactStore) -> None:
    for asset, num_videos in (("pretraining_shards", 12 + 24), ("segment_shards", 24), ("test_shards", 6)):
        verdict = audit.shards_not_empty(recipe, store, [Node(asset)])
        assert verdict.passed
        assert verdict.numbers["num_videos"] == num_videos
    leak = audit.no_leak(recipe, store, [Node("segment_shards")])
    assert leak.passed
    assert leak.numbers["num_held_out"] == 12
    assert audit.both_verdicts(recipe, store, [Node("holdout_ratings")]).passed
    assert audit.up_to_date(recipe, store, [Node("holdout_ratings")]).passed


def test_an_empty_shard_is_named(recipe: Recipe, store: ArtifactStore) -> None:
    shards = json.loads((store.fetch(store.require("test_shards")) / "shards.json").read_text())
    shards["shards"][1]["num_videos"] = 0
    put(store, "test_shards", {"shards.json": json.dumps(shards)}, like="test_shards")
    verdict = audit.shards_not_empty(recipe, store, [Node("test_shards")])
    assert verdict.problems == (f"{shards['shards'][1]['name']}: holds no good record",)
    put(store, "test_shards", {"shards.json": json.dumps({**shards, "shards": []})}, like="test_shards")
    assert not audit.shards_not_empty(recipe, store, [Node("test_shards")]).passed


def test_a_video_on_both_sides_is_named(recipe: Recipe, store: ArtifactStore) -> None:
    """Held-out videos that pre-training takes for its own: each is named, with its shards, one in the summary."""
    ids_by_name = read_video_ids(store, store.require("segment_shards"), True)
    held_out = [name.decode() for ids in ids_by_name.values() for name in ids.tolist()]
    take_back_hold_out(store)
    verdict = audit.no_leak(recipe, store, [Node("segment_shards")])
    assert len(verdict.problems) == len(held_out)
    for problem, name in zip(verdict.problems, sorted(held_out), strict=True):
        assert re.fullmatch(rf"held out and trained on: {name} in pretraining_shards \S+, \S+", problem)
    assert sorted(held_out)[0] in verdict.summary


def test_ratings_of_one_kind_are_no_measure(recipe: Recipe, store: ArtifactStore) -> None:
    put(store, "holdout_ratings", {"ratings.csv": "a:0,1,1\na:5,1,1\n"})
    verdict = audit.both_verdicts(recipe, store, [Node("holdout_ratings")])
    assert verdict.problems == ("ratings.csv: 2 positive and 0 negative ratings; both are needed",)


def test_rankings(recipe: Recipe, store: ArtifactStore) -> None:
    from yt8m_assets.stages.data import read_segment_classes

    classes = read_segment_classes(recipe, store).tolist()
    put_ranking(store, classes)
    assert audit.coverage(recipe, store, [CELL]).passed
    assert audit.finite_scores(recipe, store, [CELL]).passed
    put_ranking(store, classes[1:])
    assert f"class {classes[0]} ranks 0 segments, expected 6" in audit.coverage(recipe, store, [CELL]).summary
    put_ranking(store, classes, "twice")
    assert not audit.coverage(recipe, store, [CELL]).passed
    for change, message in {"nan": "not finite", "rising": "not sorted"}.items():
        put_ranking(store, classes, change)
        assert message in audit.finite_scores(recipe, store, [CELL]).summary


def test_a_missing_cell_is_named(recipe: Recipe, store: ArtifactStore) -> None:
    verdict = audit.coverage(recipe, store, [CELL, Node("oof_predictions", "two", 1)])
    assert verdict.problems == (
        "oof_predictions/one/shift+0: not materialised",
        "oof_predictions/two/shift+1: not materialised",
    )


@pytest.mark.parametrize(
    ("ensemble", "passed"), [(0.8, True), (0.7, True), (0.7 - 2e-16, True), (0.69, False), (float("nan"), False)]
)
def test_ensemble_against_its_best_member(recipe: Recipe, store: ArtifactStore, ensemble: float, passed: bool) -> None:
    put(store, "ensemble_weights", {"weights.json": json.dumps({"map": ensemble, "best_single": {"map": 0.7}})})
    verdict = audit.ensemble_not_worse(recipe, store, [Node("ensemble_weights")])
    assert verdict.passed is passed
    put(store, "ensemble_weights", {"weights.json": "{}"})
    assert not audit.ensemble_not_worse(recipe, store, [Node("ensemble_weights")]).passed


def test_submission_with_a_video_that_is_no_test_video(recipe: Recipe, store: ArtifactStore) -> None:
    from yt8m_assets.stages.data import read_segment_classes

    known = sorted(audit.test_video_ids(recipe, store) or ())
    classes = read_segment_classes(recipe, store).tolist()
    lines = [f"{class_id},{known[0]}:0 {known[1]}:5" for class_id in classes]
    put(store, "submission", {"submission.csv": "\n".join(["Class,Segments", *lines, ""])})
    assert audit.valid_submission(recipe, store, [Node("submission")]).passed
    lines[0] = f"{classes[0]},zzzz:0"
    put(store, "submission", {"submission.csv": "\n".join(["Class,Segments", *lines, ""])})
    (problem,) = audit.valid_submission(recipe, store, [Node("submission")]).problems
    assert "zzzz" in problem


def test_what_is_older_than_its_parents_is_not_up_to_date(recipe: Recipe, store: ArtifactStore) -> None:
    holdout = replace(recipe.data.holdout, seed=8)
    changed = replace(recipe, data=replace(recipe.data, holdout=holdout))
    verdict = audit.up_to_date(changed, store, [Node("holdout_ratings"), Node("test_shards")])
    assert verdict.problems == ("holdout_ratings: segment_shards is stale", "segment_shards: holdout.seed: 7 -> 8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_model_s_number_that_is_not_finite_is_named(recipe, store, monkeypatch, bad):
    """The store writes no such number, so one can only have come by another way: here it is put into what is read."""
    node = Node("finetuned_model", "one")
    put(store, node.key, {"weights.safetensors": "made up"})
    sound = store.require(node.key)
    assert audit.finite_map(recipe, store, [node]).passed
    for metadata, name in (({"map": bad}, "map"), ({"scores": {"best": [0.5, bad]}}, "scores.best.1")):
        monkeypatch.setattr(store, "generations", lambda key, found=metadata: iter([replace(sound, metadata=found)]))
        assert audit.finite_map(recipe, store, [node]).problems == (f"{node.key}: {name} is {bad}",)
