"""Data that change behind the project's back: links, copies that keep times, repaired and replaced shards."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.dataset.test_identity import ASSETS, QUIET, recipe_over, shard, write
from tests.data.factory import SIZES, encode, frame_record, make_video
from tests.tiny import tiny_recipe
from yt8m_assets.data.dataset import index, videos
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import scan_shards
from yt8m_assets.data.dataset.shards import list_shards
from yt8m_assets.data.records.framing import ShardFile
from yt8m_assets.errors import CorruptShardError, MissingDataError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_shards, read_shards
from yt8m_assets.stages.explain import explain
from yt8m_assets.stages.indexing import read_index
from yt8m_assets.stages.lineage import Lineage, current_manifest
from yt8m_assets.stages.locating import locate_shards
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    write(tmp_path / "data")
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_over(str(tmp_path / "data"))


def test_a_missing_file_that_the_recipe_names_makes_its_list_stale_in_words(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path
) -> None:
    make_shards(recipe, store, "segment_shards", progress=QUIET)
    path = tmp_path / "data" / "classes.csv"
    path.unlink()
    node = Node("segment_shards")
    assert current_manifest(recipe, store, node) is None
    (reason,) = explain(Lineage(recipe, store), node)
    assert reason == f"data.segment_classes_uri = '{path}': cannot be read: No such file or directory"
    with pytest.raises(MissingDataError):
        make_shards(recipe, store, "segment_shards", progress=QUIET)
    path.mkdir()
    assert current_manifest(recipe, store, node) is None


def test_a_link_to_a_shard_that_is_gone_is_an_error_and_no_shorter_list(recipe: Recipe, tmp_path: Path) -> None:
    write(tmp_path / "data")
    path = tmp_path / "data" / "2" / "train1.tfrecord"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert str(path) in list_shards(recipe.data.pretraining)
    (tmp_path / "elsewhere").unlink()
    with pytest.raises(MissingDataError, match=r"train1\.tfrecord: no such shard: it is a link to a file that"):
        list_shards(recipe.data.pretraining)


def test_a_shard_that_vanishes_after_it_was_listed_has_a_typed_error(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "data" / "2" / "train1.tfrecord"
    reading = Reading(feature_sizes=SIZES)
    listed = list_shards(str(path))
    path.unlink()
    with pytest.raises(MissingDataError, match=r"train1\.tfrecord: no such shard"):
        scan_shards(listed, reading)
    with pytest.raises(MissingDataError, match=r"train1\.tfrecord: no such shard.*holds train0\.tfrecord"):
        load_videos([str(path)], reading)


def test_another_shard_of_the_same_size_and_time_is_found_out_once_and_then_known(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path
) -> None:
    asset, node = "pretraining_shards", Node("pretraining_shards")
    before = make_shards(recipe, store, asset, progress=QUIET).manifest
    path = tmp_path / "data" / "2" / "train1.tfrecord"
    path.write_bytes(shard("train1", label=2))
    os.utime(path, LONG_AGO)
    assert current_manifest(recipe, store, node) is not None, "nothing that is looked at has changed"
    reading = recipe.data.reading(store.cache)
    shards = read_index(store, before, read_shards(recipe, store, asset))
    with pytest.raises(CorruptShardError, match="run again to index it anew"):
        list(load_videos(shards, reading))
    assert current_manifest(recipe, store, node) is None
    after = make_shards(recipe, store, asset, progress=QUIET)
    assert not after.reused
    assert after.manifest.digest != before.digest
    shards = read_index(store, after.manifest, read_shards(recipe, store, asset))
    assert [video.labels.tolist() for video in load_videos(shards, reading)] == [[1], [2]]


def test_a_record_that_was_set_aside_is_back_when_its_shard_is_whole_again(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path
) -> None:
    recipe = replace(recipe, data=replace(recipe.data, on_corrupt="quarantine"))
    paths = [tmp_path / "data" / name for name in ("2/train1.tfrecord", "3/validate1.tfrecord")]
    sound = shard("lost") + shard("kept")
    for path in paths:
        path.write_bytes(sound[:40] + bytes([sound[40] ^ 1]) + sound[41:])
        os.utime(path, LONG_AGO)
    made = {asset: make_shards(recipe, store, asset, progress=QUIET).manifest for asset in ASSETS}
    assert [made[asset].metadata["num_quarantined"] for asset in ASSETS] == [1, 1, 0]
    assert all(current_manifest(recipe, store, Node(asset)) for asset in ASSETS)
    for asset in ASSETS:
        read_shards(recipe, store, asset)
    for path in paths:
        path.write_bytes(sound)
        os.utime(path, (2_000_000_000 // 2 + 5, 2_000_000_000 // 2 + 5))
    assert [current_manifest(recipe, store, Node(asset)) is None for asset in ASSETS] == [True, True, False]
    again = {asset: make_shards(recipe, store, asset, progress=QUIET).manifest for asset in ASSETS}
    assert [again[asset].metadata["num_quarantined"] for asset in ASSETS] == [0, 0, 0]
    assert again["pretraining_shards"].metadata["num_videos"] == made["pretraining_shards"].metadata["num_videos"] + 1


def test_a_fresh_damaged_shard_stays_current_though_its_time_is_not_trusted_yet(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path
) -> None:
    recipe = replace(recipe, data=replace(recipe.data, on_corrupt="quarantine"))
    sound = shard("lost") + shard("kept")
    (tmp_path / "data" / "2" / "train1.tfrecord").write_bytes(sound[:40] + bytes([sound[40] ^ 1]) + sound[41:])
    assert make_shards(recipe, store, "pretraining_shards", progress=QUIET).manifest.metadata["num_quarantined"] == 1
    assert read_shards(recipe, store, "pretraining_shards").uris()


def test_data_from_the_future_are_looked_through_once(
    recipe: Recipe, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clock that was set back, or an archive with wrong dates: at full size, looking through takes hours."""
    for path in (tmp_path / "data").rglob("*.tfrecord"):
        os.utime(path, (4e9, 4e9))
    make_shards(recipe, store, "test_shards", progress=QUIET)
    looked_at: list[ShardFile] = []
    monkeypatch.setattr(index, "framing_crc", lambda file, **_: looked_at.append(file))
    assert current_manifest(recipe, store, Node("test_shards")) is not None
    assert make_shards(recipe, store, "test_shards", progress=QUIET).reused
    assert read_shards(recipe, store, "test_shards").uris()
    assert not looked_at


@pytest.mark.parametrize("content", [b"[]", b"null", b'{"a": 1}', b"\xff", b""])
def test_a_cache_that_is_not_what_it_was_is_made_again(
    recipe: Recipe, store: ArtifactStore, tmp_path: Path, content: bytes
) -> None:
    make_shards(recipe, store, "test_shards", progress=QUIET)
    for path in (tmp_path / "store").rglob("*.*"):
        os.utime(path, LONG_AGO)
    node = Node("test_shards")
    assert current_manifest(recipe, store, node) is not None
    caches = [tmp_path / "cache" / "identities.json", *(tmp_path / "cache" / "sound").iterdir()]
    assert len(caches) == 2
    for path in caches:
        path.write_bytes(content)
    assert current_manifest(recipe, store, node) is not None
    assert all(path.read_bytes() != content for path in caches)


def test_simulated_shards_in_a_bucket_are_looked_for_with_one_listing_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    simulated, store = tiny_recipe(), ArtifactStore("memory://changed-data", tmp_path / "cache")
    before = locate_shards(simulated, store, "pretraining_shards")
    listed: list[str] = []
    names = store.backend.names
    monkeypatch.setattr(store.backend, "names", lambda folder: listed.append(folder) or names(folder))
    assert locate_shards(simulated, store, "pretraining_shards") == before
    assert len(before) == 6
    assert len(listed) == len(set(listed)) == 2


@pytest.mark.parametrize("way", ["read", "read_windows", "annotations"])
def test_a_shard_replaced_during_a_run_is_verified_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    monkeypatch.setattr(videos, "_OPEN_FILES", 1)
    uris = []
    for name in ("a.tfrecord", "b.tfrecord"):
        (tmp_path / name).write_bytes(frame_record(encode(make_video(name[:1] * 4, 6, [1]))))
        os.utime(tmp_path / name, LONG_AGO)
        uris.append(str(tmp_path / name))
    found = load_videos(uris, Reading(feature_sizes=SIZES))
    calls = {
        "read": lambda number: found.read(number),
        "read_windows": lambda number: found.read_windows([number], [0], 2),
        "annotations": lambda number: found.annotations(number),
    }
    for number in (0, 1):
        calls[way](number)
    (tmp_path / "new").write_bytes(frame_record(encode(make_video("aaaa", 6, [2]))))
    os.replace(tmp_path / "new", uris[0])
    with pytest.raises(CorruptShardError, match=r"a\.tfrecord.*the shard has changed since it was indexed"):
        calls[way](0)
    calls[way](1)
