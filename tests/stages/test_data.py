import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.data.factory import frame_record
from tests.graph import make_lists
from yt8m_assets.data import read_shard
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.dataset import identity
from yt8m_assets.data.dataset.index import framing_checksum
from yt8m_assets.data.dataset.shards import list_shards
from yt8m_assets.data.records.examples import encode_sequence_example
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.errors import CorruptShardError, DataError, MissingDataError, ParentMismatchError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_holdout_ratings, make_shards, read_segment_classes, read_shards
from yt8m_assets.stages.lineage import Lineage, current_manifest
from yt8m_assets.stages.nodes import Node
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
    make_lists(recipe, store)
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


def test_the_published_lists_hold_every_shard_and_one_hold_out(recipe: Recipe, made: ArtifactStore) -> None:
    lists = {name: read_shards(recipe, made, name) for name in ("pretraining_shards", "segment_shards", "test_shards")}
    assert [len(shards.shards) for shards in lists.values()] == [5, 3, 1]
    assert [shards.total("num_videos") for shards in lists.values()] == [10, 6, 3]
    held = {name: {s.name for s in shards.shards if s.held_out} for name, shards in lists.items()}
    assert len(held["segment_shards"]) == 1
    assert held["pretraining_shards"] == held["segment_shards"]
    assert held["test_shards"] == set()


def test_video_ids_say_which_video_lies_where(recipe: Recipe, made: ArtifactStore) -> None:
    shards = read_shards(recipe, made, "pretraining_shards")
    table = pd.read_parquet(made.fetch(made.require("pretraining_shards")) / "video_ids.parquet")
    for number, shard in enumerate(shards.shards):
        assert table.video_id[table.shard == number].tolist() == [video.video_id for video in read_shard(shard.uri)]


def test_holdout_ratings_are_those_of_the_held_out_shards(made: ArtifactStore, recipe: Recipe) -> None:
    path = made.fetch(made.require("holdout_ratings")) / "ratings.csv"
    rows = pd.read_csv(path, names=["segment", "class_id", "score"])
    expected: Counter[tuple[str, int, float]] = Counter()
    for uri in read_shards(recipe, made, "segment_shards").uris(held_out=True):
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
    shard = Path(read_shards(found, store, "test_shards").uris()[0])
    other = Path(read_shards(recipe, made, "segment_shards").uris()[0])
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
    assert read_shards(lenient, store, "test_shards").quarantined[0]["shard"] == path.name


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


def new_store(tmp_path: Path, name: str = "artifacts") -> ArtifactStore:
    return ArtifactStore(str(tmp_path / name), tmp_path / f"{name}.cache")


def replace_by_one_of_the_same_size(path: Path) -> None:
    """Flip a byte of a frame, with checksums that fit: another shard, as long as the one before."""
    video = next(iter(read_shard(str(path))))
    assert video.frames is not None
    frames = video.frames.copy()
    frames[0, 0] ^= 1
    others = [v for v in read_shard(str(path)) if v.video_id != video.video_id]
    records = [(video.video_id, frames, video.labels, video.segments)]
    records += [(v.video_id, v.frames, v.labels, v.segments) for v in others]
    size = path.stat().st_size
    path.write_bytes(b"".join(frame_record(encode_sequence_example(*record)) for record in records))
    assert path.stat().st_size == size


@pytest.mark.parametrize("asset", ["pretraining_shards", "segment_shards", "test_shards"])
def test_a_shard_replaced_by_one_of_the_same_size_is_noticed(
    recipe: Recipe, made: ArtifactStore, tmp_path: Path, asset: str
) -> None:
    found, store = on_disk(recipe, made, tmp_path), new_store(tmp_path)
    before = make_shards(found, store, asset, progress=QUIET).manifest
    shard = Path(read_shards(found, store, asset).uris()[0])
    kept = shard.read_bytes()
    replace_by_one_of_the_same_size(shard)
    assert current_manifest(found, store, Node(asset)) is None
    with pytest.raises(ParentMismatchError, match=rf"{shard.name}: its content is not what {asset} lists"):
        read_shards(found, store, before)
    after = make_shards(found, store, asset, progress=QUIET)
    assert not after.reused
    assert after.manifest.digest != before.digest
    shard.write_bytes(kept)
    assert make_shards(found, store, asset, progress=QUIET).manifest == before, "put back, it is known again"


def test_a_shard_that_went_or_came_is_noticed(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found, store = on_disk(recipe, made, tmp_path), new_store(tmp_path)
    before = make_shards(found, store, "segment_shards", progress=QUIET).manifest
    shard = Path(read_shards(found, store, "segment_shards").uris()[0])
    shard.rename(tmp_path / "gone")
    assert current_manifest(found, store, Node("segment_shards")) is None
    with pytest.raises(ParentMismatchError, match=f"{shard.name} of segment_shards is not among the shards"):
        read_shards(found, store, before)


def test_shards_that_were_seen_are_recognised_without_reading_them(
    recipe: Recipe, made: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, store = on_disk(recipe, made, tmp_path), new_store(tmp_path)
    for path in (tmp_path / "data").rglob("*.tfrecord"):
        os.utime(path, (1e9, 1e9))
    make_shards(found, store, "test_shards", progress=QUIET)
    looked_at: list[str] = []
    monkeypatch.setattr(identity, "_look_through", lambda uri: looked_at.append(uri) or framing_checksum(uri))
    assert current_manifest(found, store, Node("test_shards")) is not None
    assert read_shards(found, store, "test_shards").uris()
    assert not looked_at
    (path,) = (tmp_path / "data/3/frame/test").iterdir()
    os.utime(path, (1e9 + 1, 1e9))
    assert current_manifest(found, store, Node("test_shards")) is not None, "touched, but not changed"
    os.utime(path, ns=(1, 10**18 + 1))
    assert current_manifest(found, store, Node("test_shards")) is not None
    assert looked_at == [str(path)], "touched, but not changed"


def test_a_file_that_was_just_written_is_looked_at_again(tmp_path: Path) -> None:
    """A second change within the same tick of the clock would not show."""
    path = tmp_path / "new"
    path.write_bytes(b"")
    identities = identity.Identities(tmp_path)
    identities.note([(str(path), list_shards(str(path))[str(path)].version, "one")])
    assert identities.get(str(path), list_shards(str(path))[str(path)].version) is None
    os.utime(path, (1e9, 1e9))
    identities.note([(str(path), list_shards(str(path))[str(path)].version, "two")])
    seen = identity.Identities(tmp_path)
    assert seen.get(str(path), list_shards(str(path))[str(path)].version) == "two"
    seen.drop(str(path))
    assert identity.Identities(tmp_path).get(str(path), list_shards(str(path))[str(path)].version) is None


def test_moving_data_and_store_changes_no_digest(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found, store = on_disk(recipe, made, tmp_path), new_store(tmp_path)
    assets = ("pretraining_shards", "segment_shards", "test_shards")
    for asset in assets:
        make_shards(found, store, asset, progress=QUIET)
    ratings = make_holdout_ratings(found, store, progress=QUIET).manifest
    (tmp_path / "elsewhere").mkdir()
    for name in ("data", "artifacts"):
        shutil.copytree(tmp_path / name, tmp_path / "elsewhere" / name)
        shutil.rmtree(tmp_path / name)
    moved = on_disk(recipe, made, tmp_path / "elsewhere" / "unused")
    moved = replace(
        moved, data=relocated(moved.data, f"{tmp_path}/elsewhere/unused/data", f"{tmp_path}/elsewhere/data")
    )
    there = ArtifactStore(str(tmp_path / "elsewhere/artifacts"), tmp_path / "a new machine")
    for asset in assets:
        assert make_shards(moved, there, asset, progress=QUIET).reused
        assert all(Path(uri).is_relative_to(tmp_path / "elsewhere") for uri in read_shards(moved, there, asset).uris())
    assert make_holdout_ratings(moved, there, progress=QUIET).manifest == ratings
    empty = ArtifactStore(str(tmp_path / "made there"), tmp_path / "third machine")
    assert [make_shards(moved, empty, asset, progress=QUIET).manifest.digest for asset in assets] == [
        there.require(asset).digest for asset in assets
    ]
    for path in Path(there.root_uri).rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


def relocated(data: DataConfig, old: str, new: str) -> DataConfig:
    patterns = {
        name: tuple(p.replace(old, new) for p in getattr(data, name)) for name in ("pretraining", "segments", "test")
    }
    return replace(data, segment_classes_uri=data.segment_classes_uri.replace(old, new), **patterns)


def test_every_file_a_recipe_names_enters_by_content(recipe: Recipe, made: ArtifactStore, tmp_path: Path) -> None:
    found, store = on_disk(recipe, made, tmp_path), new_store(tmp_path)
    first = make_shards(found, store, "segment_shards", progress=QUIET).manifest
    assert "vocabulary.csv" not in " ".join(first.files)
    named = replace(found, data=replace(found.data, vocabulary_uri=f"{tmp_path}/data/vocabulary.csv"))
    published = make_shards(named, store, "segment_shards", progress=QUIET)
    assert not published.reused
    assert "report/vocabulary.csv" in published.manifest.files
    assert published.manifest.digest == first.digest, "names for people make nothing stale that was computed"
    board = [Lineage(each, store).config(Node("leaderboard")).get("vocabulary") for each in (found, named)]
    assert board[0] is None
    assert board[1] is not None
    classes = tmp_path / "data/segment_label_ids.csv"
    classes.write_text("\n".join(classes.read_text().split()[:-3]) + "\n")
    assert current_manifest(found, store, Node("segment_shards")) is None
    fewer = make_shards(found, store, "segment_shards", progress=QUIET)
    assert fewer.manifest.digest != first.digest
    assert len(read_segment_classes(found, store)) == len(read_segment_classes(found, store, first)) - 3


def test_simulated_shards_that_were_removed_are_simulated_again(
    recipe: Recipe, made: ArtifactStore, tmp_path: Path
) -> None:
    shutil.copytree(made.root_uri, tmp_path / "artifacts")
    store = new_store(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "artifacts/simulated").rglob("3/frame/test/*")}
    shutil.rmtree(tmp_path / "artifacts/simulated")
    assert make_shards(recipe, store, "test_shards", progress=QUIET).reused
    after = {Path(uri).name: Path(uri).read_bytes() for uri in read_shards(recipe, store, "test_shards").uris()}
    assert after == before
    shard = next(iter((tmp_path / "artifacts/simulated").rglob("3/frame/test/*")))
    replace_by_one_of_the_same_size(shard)
    with pytest.raises(ParentMismatchError, match="remove it, it is simulated again"):
        read_shards(recipe, store, "test_shards")
    shard.unlink()
    assert read_shards(recipe, store, "test_shards").uris() == [str(shard)]
