"""Shards in a bucket, seen from several machines: known by the store's checksum, never fetched to be recognised."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.factory import SIZES, encode, frame_record, make_video
from tests.storage.fake_store import FakeStore
from tests.tiny import tiny_recipe
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.errors import ParentMismatchError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import make_shards, read_shards
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, remote
from yt8m_assets.storage.retry import RetryPolicy

ASSETS = ("pretraining_shards", "segment_shards", "test_shards")
QUIET = NullProgress()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeStore]:
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(remote, "_policy", RetryPolicy(request_seconds=5, deadline_seconds=5))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield fake
    fake.close()


def shard(name: str, label: int = 1) -> bytes:
    return frame_record(encode(make_video(name, 3, [label])))


def write(folder: Path) -> None:
    for release, names in {"2": ("train0", "train1"), "3": ("validate0", "validate1", "test0")}.items():
        for name in names:
            path = folder / release / f"{name}.tfrecord"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shard(name[-6:]))
            os.utime(path, (1e9, 1e9))
    (folder / "classes.csv").write_text("Index\n1\n2\n")


def recipe_over(root: str) -> Recipe:
    data = DataConfig(
        pretraining=(f"{root}/2/train*.tfrecord",),
        segments=(f"{root}/3/validate*.tfrecord",),
        test=(f"{root}/3/test*.tfrecord",),
        segment_classes_uri=f"{root}/classes.csv",
        num_classes=8,
        feature_sizes=SIZES,
        holdout=HoldoutConfig(rule="seeded", fraction=0.5),
    )
    return replace(tiny_recipe(), data=data)


def upload(fake: FakeStore, folder: Path, name: str) -> Recipe:
    for path in folder.rglob("*.*"):
        fake.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    return recipe_over(f"gs://{name}")


def shard_requests(fake: FakeStore) -> list[Any]:
    return [path for _, path in fake.requests if "tfrecord" in path]


def test_another_machine_knows_the_shards_of_a_bucket_by_its_listing(bucket: FakeStore, tmp_path: Path) -> None:
    write(tmp_path / "data")
    recipe = upload(bucket, tmp_path / "data", "bucket/a")
    first = ArtifactStore(str(tmp_path / "store"), tmp_path / "first machine")
    for asset in ASSETS:
        make_shards(recipe, first, asset, progress=QUIET)
        bucket.requests.clear()
        second = ArtifactStore(str(tmp_path / "store"), tmp_path / f"machine of {asset}")
        assert current_manifest(recipe, second, Node(asset)) is not None, f"{asset}, before the others are there"
        assert read_shards(recipe, second, asset).uris()
        assert not shard_requests(bucket)
    assert [make_shards(recipe, first, asset, progress=QUIET).reused for asset in ASSETS] == [True] * 3


def test_an_object_replaced_by_one_of_the_same_size_is_stale_without_being_fetched(
    bucket: FakeStore, tmp_path: Path
) -> None:
    write(tmp_path / "data")
    recipe = upload(bucket, tmp_path / "data", "bucket/a")
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "machine")
    before = make_shards(recipe, store, "test_shards", progress=QUIET).manifest
    bucket.put("bucket/a/3/test0.tfrecord", shard("test0", label=2))
    bucket.requests.clear()
    assert current_manifest(recipe, store, Node("test_shards")) is None
    assert not shard_requests(bucket)
    with pytest.raises(
        ParentMismatchError, match=r"gs://bucket/a/3/test0.tfrecord: its content is not what test_shards"
    ):
        read_shards(recipe, store, before)
    assert not make_shards(recipe, store, "test_shards", progress=QUIET).reused


def test_disk_and_buckets_give_one_digest(bucket: FakeStore, tmp_path: Path) -> None:
    write(tmp_path / "data")
    on_disk, moved = recipe_over(str(tmp_path / "data")), recipe_over(str(tmp_path / "moved"))
    there, copied = (upload(bucket, tmp_path / "data", name) for name in ("bucket/a", "bucket/another/folder"))
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    made = {asset: make_shards(on_disk, store, asset, progress=QUIET).manifest.digest for asset in ASSETS}
    for recipe in (moved, there, copied):
        results = [make_shards(recipe, store, asset, progress=QUIET) for asset in ASSETS]
        assert {result.manifest.key: result.manifest.digest for result in results} == made
    bucket.requests.clear()
    machine = ArtifactStore(str(tmp_path / "store"), tmp_path / "new machine")
    assert all(current_manifest(copied, machine, Node(asset)) for asset in ASSETS), "a copy has the same crc32c"
    assert not shard_requests(bucket)
