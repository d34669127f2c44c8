import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from yt8m_assets.data import read_shard
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.stages import make_holdout_ratings, make_shards, read_segment_classes, read_shards
from yt8m_assets.errors import CorruptShardError, DataError, MissingDataError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import DataConfig, HoldoutConfig, Recipe
from yt8m_assets.storage import ArtifactStore

SIMULATION = SimulationConfig(
    num_train_videos=4,
    num_validate_videos=6,
    num_test_videos=3,
    num_train_shards=2,
    num_validate_shards=3,
    num_test_shards=1,
    min_seconds=20,
    max_seconds=30,
)
QUIET = NullProgress()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    demo = load_recipe("demo")
    holdout = HoldoutConfig(rule="seeded", fraction=1 / 3)
    return replace(demo, data=DataConfig(simulation=SIMULATION, num_classes=SIMULATION.num_classes, holdout=holdout))


@pytest.fixture(scope="module")
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    root = tmp_path_factory.mktemp("root")
    store = ArtifactStore(str(root / "artifacts"), root / "cache")
    for asset in ("pretraining_shards", "segment_shards", "test_shards"):
        make_shards(recipe, store, asset, progress=QUIET)
    make_holdout_ratings(recipe, store, progress=QUIET)
    return store


def on_disk(recipe: Recipe, store: ArtifactStore, tmp_path: Path) -> Recipe:
    """The same data as files that the recipe names by pattern."""
    shutil.copytree(next((Path(store.root_uri) / "simulated").iterdir()), tmp_path / "data")
    data = replace(
        recipe.data,
        simulation=None,
        pretraining=(f"{tmp_path}/data/2/frame/train/*.tfrecord", f"{tmp_path}/data/2/frame/validate/*.tfrecord"),
        segments=(f"{tmp_path}/data/3/frame/validate/validate*.tfrecord",),
        test=(f"{tmp_path}/data/3/frame/test/test*.tfrecord",),
        segment_classes_uri=f"{tmp_path}/data/segment_label_ids.csv",
    )
    return replace(recipe, data=data)


def test_the_published_lists_hold_every_shard_and_one_hold_out(made: ArtifactStore) -> None:
    lists = {name: read_shards(made, name) for name in ("pretraining_shards", "segment_shards", "test_shards")}
    assert [len(shards.shards) for shards in lists.values()] == [5, 3, 1]
    assert [shards.total("num_videos") for shards in lists.values()] == [10, 6, 3]
    held = {name: {s.name for s in shards.shards if s.held_out} for name, shards in lists.items()}
    assert len(held["segment_shards"]) == 1
    assert held["pretraining_shards"] == held["segment_shards"]
    assert held["test_shards"] == set()


def test_video_ids_say_which_video_lies_where(made: ArtifactStore) -> None:
    shards = read_shards(made, "pretraining_shards")
    table = pd.read_parquet(made.fetch(made.require("pretraining_shards")) / "video_ids.parquet")
    for number, shard in enumerate(shards.shards):
        assert table.video_id[table.shard == number].tolist() == [video.video_id for video in read_shard(shard.uri)]


def test_holdout_ratings_are_those_of_the_held_out_shards(made: ArtifactStore, recipe: Recipe) -> None:
    path = made.fetch(made.require("holdout_ratings")) / "ratings.csv"
    rows = pd.read_csv(path, names=["segment", "class_id", "score"])
    expected: Counter[tuple[str, int, float]] = Counter()
    for uri in read_shards(made, "segment_shards").uris(held_out=True):
        for video in read_shard(uri):
            ratings = video.segments
            assert ratings is not None
            for start, class_id, score in zip(ratings.start_times, ratings.class_ids, ratings.scores, strict=True):
                expected[f"{video.video_id}:{start}", int(class_id), float(score)] += 1
    assert Counter(map(tuple, rows.values.tolist())) == expected
    assert set(rows.class_id) <= set(read_segment_classes(recipe, made).tolist())


def test_unchanged_data_is_not_made_again_and_a_replaced_shard_is_noticed(
    recipe: Recipe, made: ArtifactStore, tmp_path: Path
) -> None:
    found = on_disk(recipe, made, tmp_path)
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    assert not make_shards(found, store, "test_shards", progress=QUIET).reused
    assert make_shards(found, store, "test_shards", progress=QUIET).reused
    shard = Path(read_shards(store, "test_shards").uris()[0])
    other = Path(read_shards(made, "segment_shards").uris()[0])
    shutil.copyfile(other, shard)
    assert not make_shards(found, store, "test_shards", progress=QUIET).reused


def test_a_pattern_without_a_match_is_named(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found = on_disk(recipe, made, tmp_path)
    wrong = replace(found, data=replace(found.data, test=(f"{tmp_path}/data/3/frame/test/nothing*.tfrecord",)))
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    with pytest.raises(MissingDataError, match=r"nothing\*.*test00"):
        make_shards(wrong, store, "test_shards", progress=QUIET)
    assert store.manifest("test_shards") is None


def test_a_damaged_shard_publishes_nothing(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found = on_disk(recipe, made, tmp_path)
    path = next((tmp_path / "data/3/frame/test").iterdir())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    with pytest.raises(CorruptShardError, match=path.name):
        make_shards(found, store, "test_shards", progress=QUIET)
    assert store.manifest("test_shards") is None
    lenient = replace(found, data=replace(found.data, on_corrupt="quarantine"))
    result = make_shards(lenient, store, "test_shards", progress=QUIET)
    assert result.manifest.metadata["num_quarantined"] == 1
    assert read_shards(store, "test_shards").quarantined[0]["uri"] == str(path)


def test_f25_a_video_in_two_shards_is_named(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found = on_disk(recipe, made, tmp_path)
    folder = tmp_path / "data/3/frame/test"
    shutil.copyfile(folder / "test00.tfrecord", folder / "test10.tfrecord")
    twice = next(iter(read_shard(str(folder / "test00.tfrecord")))).video_id
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    with pytest.raises(DataError, match=twice):
        make_shards(found, store, "test_shards", progress=QUIET)


def test_a_rule_that_holds_out_everything_is_refused(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found = on_disk(recipe, made, tmp_path)
    original = replace(found, data=replace(found.data, holdout=HoldoutConfig(rule="original")))
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"3 of 3 segment shards"):
        make_shards(original, store, "segment_shards", progress=QUIET)
