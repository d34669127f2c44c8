"""Index passes that are killed, race, or meet what others left; published indexes that are not what they should be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.benchmarks.scale_index import recipe_over, write_data
from tests.slow_bucket import SlowBucket, slow_bucket
from yt8m_assets.data.dataset import scan
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.packed import INDEX_FILE
from yt8m_assets.data.dataset.shelf import IndexShelf
from yt8m_assets.errors import CorruptArtifactError, CorruptShardError, ParentMismatchError, PartitionBusyError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_shards, read_shards
from yt8m_assets.stages.explain import explain
from yt8m_assets.stages.indexing import read_index, read_video_ids
from yt8m_assets.stages.lineage import Lineage, current_manifest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.storage.manifest import content_digest

QUIET = NullProgress()
ASSET = "pretraining_shards"
LONG_AGO = (1_000_000_000, 1_000_000_000)
PASS = """
import sys
from pathlib import Path
from tests.benchmarks.scale_index import recipe_over
from yt8m_assets.data.dataset import scan
from yt8m_assets.progress import PlainProgress
from yt8m_assets.stages.data import make_shards
from yt8m_assets.storage import ArtifactStore
scan.PARALLEL_BYTES, scan._MEGABYTE = 0, 1000
store = ArtifactStore(sys.argv[2], Path(sys.argv[3]))
make_shards(recipe_over(sys.argv[1], 1, 8), store, "pretraining_shards", progress=PlainProgress(sys.stdout, 0))
"""


def recipe_of(root: str) -> Recipe:
    return recipe_over(root, num_steps=1, window=8)


def settle(folder: Path) -> None:
    """Let all times of change lie long ago, so that they tell."""
    for path in folder.rglob("*.*"):
        os.utime(path, LONG_AGO)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "data", 8, 6, 20)
    settle(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read to be indexed."""
    names: list[str] = []

    def noting(uri: str, *args: Any, **options: Any) -> Any:
        names.append(uri.rsplit("/", 1)[-1].removesuffix(".tfrecord"))
        return build_index(uri, *args, **options)

    monkeypatch.setattr(scan, "build_index", noting)
    return names


def make(recipe: Recipe, store: ArtifactStore, asset: str = ASSET) -> Manifest:
    return make_shards(recipe, store, asset, progress=QUIET).manifest


def read_all(recipe: Recipe, store: ArtifactStore, manifest: Manifest) -> list[str]:
    """Ids of all videos, each read with its frames."""
    shards = read_index(store, manifest, read_shards(recipe, store, manifest))
    return [video.video_id for video in load_videos(shards, recipe.data.reading(store.cache)) if len(video.frames)]


def start_pass(data: str, store: str, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PASS, data, store, str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def kept(store: ArtifactStore, asset: str = ASSET) -> list[str]:
    return store.backend.names(IndexShelf(store.backend, asset).folder)


@pytest.fixture
def bucket() -> Iterator[SlowBucket]:
    with slow_bucket() as started:
        yield started


@pytest.mark.slow
def test_a_killed_pass_goes_on_from_what_it_had_on_another_machine(
    bucket: SlowBucket, data: Path, tmp_path: Path
) -> None:
    root = bucket.load(data, "yt/data")
    expected = make(recipe_of(root), ArtifactStore(str(tmp_path / "store"), tmp_path / "elsewhere"))
    bucket.hold("train0007")  # so that the pass is not over before it is killed
    store = ArtifactStore("gs://yt/store", tmp_path / "second")
    started = start_pass(root, "gs://yt/store", tmp_path / "first")
    try:
        deadline = time.monotonic() + 60
        while len(kept(store)) < 3 and started.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = psutil.Process(started.pid).children(recursive=True)
    finally:
        started.send_signal(signal.SIGKILL)
        started.communicate()
    assert store.numbers(ASSET) == []
    _, left = psutil.wait_procs(workers, timeout=20)
    assert not left, "workers end with the pass that started them"
    done = len(kept(store))
    assert 3 <= done < 8
    bucket.hold()
    bucket.reset()
    again = start_pass(root, "gs://yt/store", tmp_path / "second")
    lines, _ = again.communicate(timeout=100)
    assert again.returncode == 0
    assert store.require(ASSET).digest == expected.digest
    assert {n: e for n, e in store.require(ASSET).files.items() if n.startswith("index/")} == {
        n: e for n, e in expected.files.items() if n.startswith("index/")
    }
    size = sum(path.stat().st_size for path in data.glob("train*")) + sum(
        path.stat().st_size for path in sorted(data.glob("validate*"))
    )
    assert bucket.counts().bytes < size - (done - 1) * (data / "train0000.tfrecord").stat().st_size + 40_000
    assert kept(store) == []
    assert "indexing shards: " in lines
    assert " MB, " in lines, "how much of it was there already"


def test_a_shelf_holds_nothing_that_does_not_fit(data: Path, store: ArtifactStore, built: list[str]) -> None:
    """A damaged index, one of another version of the shard, one of other features."""
    recipe = recipe_of(str(data))
    shelf = IndexShelf(store.backend, ASSET)
    listing = scan.look_at  # what a listing says of a shard
    reading = recipe.data.reading(store.cache)
    uris = [str(path) for path in sorted(data.glob("train*"))]
    for uri in uris[:4]:
        shelf.put(build_index(uri, reading), listing(uri), reading)
    names = kept(store)
    assert len(names) == 4
    found = shelf.find({uri: listing(uri) for uri in uris}, reading)
    assert set(found) == set(uris[:4])
    place = Path(store.root_uri) / shelf.folder / shelf._name(uris[0], listing(uris[0]), reading)
    place.write_bytes(place.read_bytes()[:-9] + b"\0" * 9)
    os.utime(uris[1], (2_000_000, 2_000_000))
    assert set(shelf.find({uri: listing(uri) for uri in uris}, reading)) == set(uris[2:4])
    assert shelf.find({uri: listing(uri) for uri in uris}, replace(reading, feature_sizes=(64, 16))) == {}
    make(recipe, store)
    assert sorted(built) == ["train0000", "train0001", "train0004", "train0005", "train0006", "train0007"] + [
        name for name in sorted(built) if name.startswith("validate")
    ]
    assert kept(store) == []


def test_what_a_sweep_left_goes_with_the_next_look_and_nothing_else_does(data: Path, store: ArtifactStore) -> None:
    """A pass was killed between publishing and the end of its sweep; a pass of another recipe is interrupted."""
    recipe = recipe_of(str(data))
    make(recipe, store)
    shelf, reading = IndexShelf(store.backend, ASSET), recipe.data.reading(store.cache)
    other = replace(reading, feature_sizes=(64, 0))
    for uri in [str(path) for path in sorted(data.glob("train*"))][:3]:
        for each in (reading, other):
            shelf.put(build_index(uri, each), scan.look_at(uri), each)
    assert len(kept(store)) == 6
    assert make_shards(recipe, store, ASSET, progress=QUIET).reused
    assert len(kept(store)) == 3
    listing = {str(path): scan.look_at(str(path)) for path in data.glob("train*")}
    assert len(shelf.find(listing, other)) == 3


def test_a_shard_that_was_changed_just_now_is_not_kept(data: Path, store: ArtifactStore) -> None:
    """It may change again within the tick of its clock."""
    recipe = recipe_of(str(data))
    reading, uri = recipe.data.reading(store.cache), str(data / "train0000.tfrecord")
    os.utime(uri)
    IndexShelf(store.backend, ASSET).put(build_index(uri, reading), scan.look_at(uri), reading)
    assert kept(store) == []


def test_two_passes_at_once_publish_one_list(bucket: SlowBucket, data: Path, tmp_path: Path) -> None:
    root = bucket.load(data, "yt/data")
    bucket.pace(5)
    outcomes: list[Any] = []

    def index(machine: str) -> None:
        try:
            outcomes.append(make(recipe_of(root), ArtifactStore("gs://yt/store", tmp_path / machine)))
        except PartitionBusyError as error:
            outcomes.append(error)

    passes = [threading.Thread(target=index, args=(f"machine{number}",)) for number in range(3)]
    for each in passes:
        each.start()
    for each in passes:
        each.join()
    store = ArtifactStore("gs://yt/store", tmp_path / "reader")
    assert len({outcome.digest for outcome in outcomes if isinstance(outcome, Manifest)}) == 1
    assert len(read_all(recipe_of(root), store, store.require(ASSET))) == 8 * 6


def test_a_list_without_an_index_is_made_again_and_keeps_its_digest(
    data: Path, store: ArtifactStore, built: list[str]
) -> None:
    """One of an earlier version: what was made from it stays current once it is there again."""
    recipe, node = recipe_of(str(data)), Node(ASSET)
    whole = make(recipe, store)
    old = publish_like(store, whole, lambda name: not name.startswith("index/"))
    store.drop(ASSET, whole.generation)
    assert old.digest == whole.digest
    assert current_manifest(recipe, store, node) is None
    (reason,) = explain(Lineage(recipe, store), node)
    assert reason == f"it holds no {INDEX_FILE}: made again, it keeps its content"
    with pytest.raises(ParentMismatchError, match="without an index of this version; materialise it again"):
        read_index(store, old, read_shards(recipe, store, old))
    again = make(recipe, store)
    assert (again.digest, again.fingerprint) == (whole.digest, whole.fingerprint)
    assert again.files == whole.files
    assert current_manifest(recipe, store, node) == again


@pytest.mark.parametrize("held_out", [True, False])
def test_ids_of_a_list_without_an_index_are_the_same(data: Path, store: ArtifactStore, held_out: bool) -> None:
    """The check of leaks looks at whatever list there is."""
    whole = make(recipe_of(str(data)), store, "segment_shards")
    old = publish_like(store, whole, lambda name: not name.startswith("index/"))
    found, known = (read_video_ids(store, each, held_out) for each in (old, whole))
    assert {name: ids.tolist() for name, ids in found.items()} == {name: ids.tolist() for name, ids in known.items()}
    assert len(found) == 2


def publish_like(
    store: ArtifactStore, manifest: Manifest, keep: Any, change: Any = lambda name, content: content
) -> Manifest:
    """The same artifact with some of its files, or with changed ones."""
    folder = store.fetch(manifest, tuple(manifest.files))
    arguments: Any = {"parents": manifest.parents, "config": manifest.config, "code_version": manifest.code_version}
    with store.publish(manifest.key, fingerprint=manifest.fingerprint, **arguments) as publication:
        for name in filter(keep, manifest.files):
            (publication.path / name).parent.mkdir(exist_ok=True)
            (publication.path / name).write_bytes(change(name, (folder / name).read_bytes()))
    assert publication.manifest is not None
    return publication.manifest


@pytest.mark.parametrize("damage", ["bit", "short", "missing", "json"])
def test_a_damaged_index_is_never_read_and_made_again_for_its_shards_alone(
    data: Path, store: ArtifactStore, built: list[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("yt8m_assets.data.dataset.packed.FILE_BYTES", 34 * 6 * 2)  # two shards a file
    recipe = recipe_of(str(data))
    whole = make(recipe, store)
    names = sorted(name for name in whole.files if name.endswith(".rows"))
    assert len(names) == 4
    path = Path(store.uri(whole, INDEX_FILE if damage == "json" else names[1]))
    content = path.read_bytes()
    changed = {"bit": content[:70] + bytes([content[70] ^ 4]) + content[71:], "short": content[:-3], "json": b"{}"}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    fresh = ArtifactStore(store.root_uri, store.cache_path)
    assert current_manifest(recipe, fresh, Node(ASSET)) is None
    with pytest.raises(CorruptArtifactError):
        read_index(fresh, whole, read_shards(recipe, fresh, whole))
    built.clear()
    again = make(recipe, fresh)
    assert again.digest == whole.digest
    read = [name for name in built if name.startswith("train")]
    assert read == ([f"train{n:04d}" for n in range(8)] if damage == "json" else ["train0002", "train0003"])
    assert len(read_all(recipe, fresh, again)) == 48


def test_rows_of_an_index_that_lies_are_found_out_by_the_records(data: Path, store: ArtifactStore) -> None:
    """With a right sha256, by whoever made it: each record's own checksum is compared when it is first read."""
    recipe = recipe_of(str(data))
    whole = make(recipe, store)

    def swap(name: str, content: bytes) -> bytes:
        rows = np.frombuffer(content, np.uint8).reshape(-1, 34).copy() if name.endswith(".rows") else None
        if rows is None:
            return content
        rows[[0, 1]] = rows[[1, 0]]
        return rows.tobytes()

    lying = publish_like(store, whole, lambda name: True, swap)
    with pytest.raises(CorruptShardError, match="record 0 at byte 0: the shard has changed since it was indexed"):
        read_all(recipe, store, lying)


def test_an_index_of_other_features_is_not_taken(data: Path, store: ArtifactStore, built: list[str]) -> None:
    recipe = recipe_of(str(data))
    make(recipe, store)
    built.clear()
    narrow = replace(recipe, data=replace(recipe.data, feature_sizes=(64, 0)))
    manifest = make(narrow, store)
    assert len([name for name in built if name.startswith("train")]) == 8
    shards = read_index(store, manifest, read_shards(narrow, store, manifest))
    assert load_videos(shards, narrow.data.reading(store.cache)).read(0).shape == (20, 64)
    assert current_manifest(recipe, store, Node(ASSET)) is not None


def test_a_shard_that_is_renamed_or_moved_or_there_twice_is_not_read_again(
    data: Path, store: ArtifactStore, built: list[str], tmp_path: Path
) -> None:
    recipe = recipe_of(str(data))
    first = make(recipe, store)
    built.clear()
    (data / "train0003.tfrecord").rename(data / "train0103.tfrecord")
    (data / "deeper").mkdir()
    shutil.copy2(data / "train0005.tfrecord", data / "deeper" / "train0005.tfrecord")
    recipe = replace(
        recipe, data=replace(recipe.data, pretraining=(f"{data}/train*.tfrecord", f"{data}/deeper/*.tfrecord"))
    )
    again = make(recipe, store)
    assert not built
    assert again.digest != first.digest
    ids = read_all(recipe, store, again)
    assert len(ids) == 9 * 6
    assert len(set(ids)) == 8 * 6
    assert json.loads((store.fetch(again) / "shards.json").read_text())["notes"]["duplicates"]


@pytest.mark.parametrize("on_corrupt", ["quarantine", "raise"])
def test_a_list_with_records_set_aside_serves_who_sets_aside_alone(
    data: Path, store: ArtifactStore, built: list[str], on_corrupt: str
) -> None:
    path = data / "train0002.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + 500] ^= 1  # in the data of record 3
    path.write_bytes(content)
    os.utime(path, LONG_AGO)
    recipe = recipe_of(str(data))
    lenient = replace(recipe, data=replace(recipe.data, on_corrupt="quarantine"))
    first = make(lenient, store)
    assert len(read_all(lenient, store, first)) == 47
    os.utime(data / "train0007.tfrecord", (2_000_000_000, 2_000_000_000))
    (data / "train0007.tfrecord").write_bytes((data / "train0006.tfrecord").read_bytes())
    built.clear()
    if on_corrupt == "quarantine":
        again = make(lenient, store)
        assert built == []
        assert again.metadata["num_quarantined"] == 1
        assert len(read_all(lenient, store, again)) == 47
    else:
        with pytest.raises(CorruptShardError, match=r"train0002\.tfrecord: record 3"):
            make(recipe, store)


def test_the_digest_is_that_of_list_and_ids_alone(data: Path, store: ArtifactStore) -> None:
    """What was published before there was an index has the same."""
    manifest = make(recipe_of(str(data)), store)
    content = {name: entry for name, entry in manifest.files.items() if name in ("shards.json", "video_ids.parquet")}
    assert manifest.digest == content_digest(content)
    assert INDEX_FILE in manifest.files
