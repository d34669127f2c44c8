"""Data that is not numbered, named or filled as the challenge's is: what each field of a recipe makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.factory import make_video, write_shard
from tests.graph import QUIET, make_data, make_rankings, open_store
from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.records.video import SegmentLabels
from yt8m_assets.data.records.vocabulary import ClassView, load_label_map
from yt8m_assets.errors import ConfigError, DataError, MissingDataError, VocabularyError
from yt8m_assets.evaluation import Ratings
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import RATINGS_FILE, make_holdout_ratings, make_shards, read_shards
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.locating import locate_shards
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.ratings import read_ratings
from yt8m_assets.storage import ArtifactStore

OLD = (4715, 300, 20)
"""Classes as the shards number them, of 2017's 4716."""


def write_data(folder: Path, sizes: tuple[int, int] = (16, 8), rated: tuple[int, ...] = OLD) -> DataConfig:
    """Four rated shards under both naming schemes, four of pre-training, two of test."""
    folder.mkdir(exist_ok=True)

    def shard(name: str, letter: str, of_segments: bool = False, labelled: bool = True) -> None:
        ratings = [(5 * number, old, float(number % 2)) for number, old in enumerate((*rated, *rated))]
        videos = [
            make_video(f"{letter}{number}vid", 40, OLD[:2] if labelled else (), ratings if of_segments else None, sizes)
            for number in range(4)
        ]
        write_shard(folder / f"{name}.tfrecord", videos, sizes)

    for place, name in enumerate(("validate0000", "validate0001", "validate20", "validate30")):
        shard(name, "abcd"[place], of_segments=True)
        shard(f"train{place:04d}", "efgh"[place])
    shard("test0000", "i", labelled=False)
    shard("test0001", "j", labelled=False)
    (folder / "map.csv").write_text("Index,NewIndex\n4715,0\n300,1\n")
    (folder / "classes.csv").write_text("Index\n0\n1\n")
    return DataConfig(
        pretraining=(f"{folder}/train*",),
        segments=(f"{folder}/validate*",),
        test=(f"{folder}/test*",),
        segment_classes_uri=f"{folder}/classes.csv",
        label_map_uri=f"{folder}/map.csv",
        num_classes=2,
        feature_sizes=sizes,
        holdout=HoldoutConfig(rule="original", num_shards=2),
    )


def recipe_of(data: DataConfig, **fields: object) -> Recipe:
    return tiny_recipe(**{"data": data, "models": (tiny_model("one", (0,)),), **fields})


def annotated(recipe: Recipe, uri: str, store: ArtifactStore) -> tuple[list[int], list[tuple[int, int, float]]]:
    """Labels and ratings of a shard's first video, as trainings see them."""
    labels, segments = load_videos([uri], recipe.data.reading(store.cache)).annotations(0)
    assert segments is not None
    rows = zip(segments.start_times.tolist(), segments.class_ids.tolist(), segments.scores.tolist(), strict=True)
    return labels.tolist(), sorted(rows)


def test_a_map_gives_labels_and_ratings_other_numbers_and_leaves_others_out(tmp_path: Path) -> None:
    recipe, store = recipe_of(write_data(tmp_path / "data")), open_store(tmp_path)
    labels, ratings = annotated(recipe, f"{tmp_path}/data/validate0000.tfrecord", store)
    assert labels == [0, 1]
    assert ratings == [(0, 0, 0.0), (5, 1, 1.0), (15, 0, 1.0), (20, 1, 0.0)]
    for asset in ("pretraining_shards", "segment_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    make_holdout_ratings(recipe, store, progress=QUIET)
    manifest = Lineage(recipe, store).current(Node("holdout_ratings"))
    assert manifest is not None
    published = Ratings.read_csv(store.fetch(manifest, (RATINGS_FILE,)) / RATINGS_FILE)
    assert sorted(set(published.class_id.tolist())) == [0, 1]
    table = SegmentTable(
        load_videos([f"{tmp_path}/data/validate20.tfrecord"], recipe.data.reading(store.cache)), num_classes=2
    )
    assert set(table.ratings.class_ids.tolist()) == {0, 1}
    assert set(read_ratings(tmp_path / "data" / "validate20.tfrecord", recipe.data).class_id.tolist()) == {0, 1}


def test_another_map_makes_what_was_made_of_the_first_stale(tmp_path: Path) -> None:
    recipe, store = recipe_of(write_data(tmp_path / "data")), open_store(tmp_path)
    make_data(recipe, store)
    assert Lineage(recipe, store).state(Node("pretrained_model", "one")) == "current"
    (tmp_path / "data" / "map.csv").write_text("Index,NewIndex\n4715,1\n300,0\n")
    states = [
        Lineage(recipe, store).state(Node(*names)) for names in (("segment_shards",), ("pretrained_model", "one"))
    ]
    assert states == ["stale", "stale"]
    assert Lineage(recipe, store).state(Node("test_shards")) == "current"
    for asset in ("pretraining_shards", "segment_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    assert Lineage(recipe, store).state(Node("pretrained_model", "one")) == "stale"


def test_of_old_classes_that_are_one_the_one_that_was_seen_counts() -> None:
    view = ClassView(((7, 0), (8, 0), (9, 1)))
    assert view.labels(np.array([9, 8, 7, 5])).tolist() == [0, 1]
    scores = np.array([1.0, 0.0, 1.0], np.float32)
    found = view.segments(SegmentLabels(np.array([0, 0, 5]), np.array([7, 8, 5]), scores))
    assert (found.start_times.tolist(), found.class_ids.tolist(), found.scores.tolist()) == ([0, 0], [0, 0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Index\n1\n", r"line 1: expected the header 'Index,NewIndex', got 'Index'"),
        ("Index,NewIndex\n1,2\n", r"line 2: NewIndex '2' is no class of 2"),
        ("Index,NewIndex\n1,0\n1,1\n", r"line 3: class 1 stands already in line 2"),
        ("Index,NewIndex\nx,0\n", r"line 2: expected a class number, got 'x'"),
        ("Index,NewIndex\n3\n", r"line 2: NewIndex '' is no class"),
        ("Index,NewIndex\n", r"maps no class"),
    ],
)
def test_a_map_that_is_none_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(VocabularyError, match=message):
        load_label_map(str(tmp_path / "map.csv"), num_classes=2)


def test_only_some_of_the_rated_classes(tmp_path: Path) -> None:
    """The class file names two of the three that were rated: an error, or the third's ratings are left out."""
    whole = replace(write_data(tmp_path / "data", rated=(0, 1, 3)), label_map_uri=None, num_classes=4716)
    recipe, store = recipe_of(whole), open_store(tmp_path)
    make_shards(recipe, store, "segment_shards", progress=QUIET)
    with pytest.raises(
        VocabularyError, match=r"class 3 is not a rated class; the recipe's \"unlisted_ratings\": \"drop\""
    ):
        make_holdout_ratings(recipe, store, progress=QUIET)
    some = recipe_of(replace(whole, unlisted_ratings="drop"))
    make_holdout_ratings(some, store, progress=QUIET)
    assert {class_id for _, class_id, _ in annotated(some, f"{tmp_path}/data/validate20.tfrecord", store)[1]} == {0, 1}


def test_both_naming_schemes_may_lie_side_by_side(tmp_path: Path) -> None:
    """validate20 and validate30 are the original's places 2 and 3; the first two places are held out."""
    recipe, store = recipe_of(write_data(tmp_path / "data")), open_store(tmp_path)
    make_shards(recipe, store, "segment_shards", progress=QUIET)
    held = {shard.name for shard in read_shards(recipe, store, "segment_shards").shards if shard.held_out}
    assert held == {"validate0000.tfrecord", "validate0001.tfrecord"}
    (tmp_path / "data" / "validate10.tfrecord").symlink_to(tmp_path / "data" / "train0000.tfrecord")
    with pytest.raises(DataError, match=r"validate0001.tfrecord and validate10.tfrecord are one shard"):
        make_shards(recipe, open_store(tmp_path / "other"), "segment_shards", progress=QUIET)


def test_a_share_of_the_shards_goes_by_their_names(tmp_path: Path) -> None:
    """A smaller share is part of a larger one, wherever the shards lie; the rated and the labelled release agree."""
    data, store = write_data(tmp_path / "data"), open_store(tmp_path)
    assets = ("pretraining_shards", "segment_shards", "test_shards")

    def drawn(share: float, data: DataConfig = data) -> set[str]:
        recipe = recipe_of(replace(data, shard_share=share))
        return {Path(uri).name for asset in assets for uri in locate_shards(recipe, store, asset)}

    assert len(drawn(1.0)) == 10
    assert drawn(0.5) < drawn(0.8) < drawn(1.0)
    assert drawn(0.5, write_data(tmp_path / "elsewhere")) == drawn(0.5)
    with pytest.raises(MissingDataError, match=r"data\.shard_share = 1e-06: draws none of 4 shards"):
        drawn(1e-6)
    with pytest.raises(ConfigError, match="must be above 0, and at most 1"):
        replace(data, shard_share=1.5)
    with pytest.raises(ConfigError, match="the data is simulated"):
        replace(tiny_recipe().data, shard_share=0.5)


@pytest.mark.parametrize("architecture", ["bert_mean_l2h12", "gated_netvlad_h1024c16", "mix_nextvlad_iter60"])
def test_records_with_rgb_alone_are_ranked(architecture: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", sizes=(16, 0))
    vlad = {"num_clusters": 4, "hidden_size": 16, "num_sampled_frames": 10}
    overrides = {} if architecture.startswith("bert") else {"overrides": vlad}
    model = tiny_model("one", (0,), architecture=architecture, **overrides)
    recipe, store = recipe_of(data, models=(model,)), open_store(tmp_path)
    make_data(recipe, store)
    make_rankings(recipe, store)
    assert Lineage(recipe, store).state(Node("test_ranking", "one")) == "current"


def test_each_is_a_field_of_a_json_recipe(tmp_path: Path) -> None:
    values = {"label_map_uri": "map.csv", "unlisted_ratings": "drop", "shard_share": 0.1, "feature_sizes": [1024, 0]}
    (tmp_path / "mine.json").write_text(json.dumps({"base": "challenge", "data": values}))
    data = load_recipe(tmp_path / "mine.json").data
    assert (data.label_map_uri, data.shard_share) == (f"{tmp_path}/map.csv", 0.1)
    assert (data.unlisted_ratings, data.feature_sizes) == ("drop", (1024, 0))
