"""A process that dies at any one of its operations leaves the old or the new state, and a rerun makes the new one.

Exhaustive: each publication, checkpoint, index pass and completion of an MLflow run dies at its first operation, at its
second, and so on until it gets through.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.scale_index import recipe_over, write_data
from tests.faults.test_indexing import read_all, settle
from tests.faults.tracking_support import (
    all_runs,
    assert_complete,
    everything,
    only_run,
    open_tracking,
    publish,
    synced,
)
from tests.storage.crash import commits_counted, dying_after, each_death
from tests.storage.places import Emulated, Folder, Memory, Place
from tests.storage.suite import contents
from tests.storage.suite import publish as publish_files
from yt8m_assets.data.dataset.shelf import IndexShelf
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.data import make_shards
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking
from yt8m_assets.tracking.sync import sync
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore

KEY = "asset/model"
NewPlace = Callable[[Path, dict[str, bytes]], Place]


def in_a_folder_and(*others: str) -> pytest.MarkDecorator:
    """Where a test's artifacts lie: in a bucket the same takes minutes, as each request is answered by a server."""
    slow = [pytest.param(other, marks=pytest.mark.slow) for other in others]
    return pytest.mark.parametrize("new_place", ["folder", *slow], indirect=True)


@pytest.fixture
def new_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NewPlace:
    """Makes a place for artifacts that holds these objects: a folder below the one that is given, or a bucket."""
    if request.param == "emulator":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", request.getfixturevalue("emulator"))

    def filled(folder: Path, objects: dict[str, bytes]) -> Place:
        name = f"crash-{secrets.token_hex(4)}"
        if request.param == "emulator":
            place: Place = Emulated(os.environ["STORAGE_EMULATOR_HOST"], name)
        else:
            place = Folder(folder / "root") if request.param == "folder" else Memory(f"{name}/root")
        for name, content in objects.items():
            place.write(name, content)
        return place

    return filled


def objects_of(place: Place) -> dict[str, bytes]:
    return {name: place.read(name) for name in place.names()}


@pytest.fixture(autouse=True)
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file after the other, so that every death has a place of its own; leftovers in a bucket go at once."""
    monkeypatch.setattr("yt8m_assets.storage.retention._ORPHAN_DISTANCE", 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # who is killed takes no page cache along
    monkeypatch.setattr("yt8m_assets.storage.backend._NUM_PARALLEL", 1)
    monkeypatch.setattr("yt8m_assets.data.dataset.shelf._NUM_PARALLEL", 1)


def listed_files(place: Place) -> set[str]:
    """The manifests of a place, and the files that they list."""
    names = [name for name in place.names() if "/manifest-" in name]
    values = {name: json.loads(place.read(name)) for name in names}
    return {*names, *(f"{v['key']}/{v['folder']}/{file}" for v in values.values() for file in v["files"])}


@in_a_folder_and("memory", "emulator")
def test_a_publication(new_place: NewPlace, tmp_path: Path) -> None:
    files = {name: {"part": name.encode(), "sub/part": b"2" * 9} for name in ("first", "old", "new", "next")}
    seen: list[str] = []
    template = Folder(tmp_path / "before")
    for fingerprint in ("first", "old"):
        publish_files(ArtifactStore(template.root_uri, tmp_path, 2), KEY, fingerprint, files[fingerprint])
    before = objects_of(template)

    def run(operations: int) -> bool:
        machine = tmp_path / str(operations)
        place = new_place(machine, before)

        def store() -> ArtifactStore:
            return ArtifactStore(place.root_uri, machine, keep_generations=2)

        with dying_after(operations, tmp_path) as died:
            publish_files(store(), KEY, "new", files["new"])
        there = store().require(KEY)
        seen.append(there.fingerprint)
        for reader in (store(), ArtifactStore(place.root_uri, machine / "another")):
            assert contents(reader, there) == files[there.fingerprint]
        if store().find(KEY, "new") is None:
            publish_files(store(), KEY, "new", files["new"])
        assert contents(store(), store().require(KEY)) == files["new"]
        publish_files(store(), KEY, "next", files["next"])
        assert set(place.names()) == listed_files(place), "what the dead left has gone"
        assert [found.fingerprint for found in store().generations(KEY)] == ["next", "new"]
        return died()

    assert 10 < each_death(run) < 200
    assert seen == sorted(seen, reverse=True), "old before the manifest lands, new from then on"
    assert set(seen) == {"old", "new"}


def checkpoint(step: int) -> Checkpoint:
    groups = {name: {"w": torch.full((3,), float(step))} for name in ("model", "optimizer")}
    return Checkpoint({"loop": {"step": step}}, groups)


def step_of(found: Checkpoint | None) -> int:
    """Step of a checkpoint, all of which is of that step."""
    assert found is not None
    step = int(found.state["loop"]["step"])
    assert {float(value) for group in found.groups.values() for tensor in group.values() for value in tensor} == {step}
    assert set(found.groups) == {"model", "optimizer"}
    return step


@in_a_folder_and("memory")
def test_a_checkpoint(new_place: NewPlace, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def save(checkpoints: CheckpointStore, step: int) -> None:
        checkpoints.save_best(checkpoint(step))
        checkpoints.save(step, checkpoint(step))

    def open_at(place: Place, machine: Path) -> CheckpointStore:
        return CheckpointStore(ArtifactStore(place.root_uri, machine), "checkpoints/a/m", {"model": "m"})

    template = Folder(tmp_path / "before")
    for step in (1, 2):
        save(open_at(template, tmp_path), step)
    before = objects_of(template)

    def run(operations: int) -> bool:
        machine = tmp_path / str(operations)
        place = new_place(machine, before)

        def checkpoints() -> CheckpointStore:
            return open_at(place, machine)

        with dying_after(operations, tmp_path) as died:
            save(checkpoints(), 3)
        seen.append((step_of(checkpoints().latest()), step_of(checkpoints().best())))
        checkpoints().sweep()
        for step in range(seen[-1][0] + 1, 6):  # as the rerun of a training does
            save(checkpoints(), step)
        assert (step_of(checkpoints().latest()), step_of(checkpoints().best())) == (5, 5)
        assert set(place.names()) == listed_files(place), "what the dead left has gone"
        assert {name.split("/")[3] for name in place.names()} == {"best", "step-00000004", "step-00000005"}
        return died()

    assert 30 < each_death(run) < 400
    assert seen == sorted(seen)
    assert set(seen) == {(2, 2), (2, 3), (3, 3)}, "no checkpoint without the best weights that it speaks of"


@in_a_folder_and("memory")
def test_an_index_pass(new_place: NewPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a list of one shard to one of three, two of which have to be read."""
    asset, data = "pretraining_shards", tmp_path / "data"
    write_data(data, 3, 2, 6)
    settle(data)
    recipe = recipe_over(str(data), num_steps=1, window=8)

    def make(store: ArtifactStore) -> Any:
        return make_shards(recipe, store, asset, progress=NullProgress()).manifest

    def index_of(manifest: Any) -> dict[str, Any]:
        return {name: entry for name, entry in manifest.files.items() if not name.startswith("report/")}

    later = [data / f"train{number:04d}.tfrecord" for number in (1, 2)]
    for path in later:
        path.rename(path.with_suffix(".later"))
    old_store = ArtifactStore(str(tmp_path / "old"), tmp_path / "cache")
    old = make(old_store)
    for path in later:
        path.with_suffix(".later").rename(path)
    shutil.copytree(tmp_path / "old", tmp_path / "reference")
    new = make(ArtifactStore(str(tmp_path / "reference"), tmp_path / "cache"))
    ids = read_all(recipe, ArtifactStore(str(tmp_path / "reference"), tmp_path / "cache"), new)
    before = objects_of(Folder(tmp_path / "old"))
    seen: list[str] = []

    def run(operations: int) -> bool:
        machine = tmp_path / str(operations)
        place = new_place(machine, before)
        store = ArtifactStore(place.root_uri, machine)
        with dying_after(operations, tmp_path) as died:
            make(store)
        store = ArtifactStore(place.root_uri, machine / "another")
        there = store.require(asset)
        store.fetch(there)
        seen.append(there.digest)
        assert index_of(there) in (index_of(old), index_of(new))
        manifest = make(store)
        assert index_of(manifest) == index_of(new)
        assert read_all(recipe, store, manifest) == ids
        assert store.backend.names(IndexShelf(store.backend, asset).folder) == []
        return died()

    assert 30 < each_death(run) < 500
    assert list(dict.fromkeys(seen)) == [old.digest, new.digest]


@pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_a_completion_of_an_mlflow_run(migrated_database: Path, tmp_path: Path, stride: int) -> None:
    """Between any two commits of the server's database, and at each file that is uploaded."""
    from mlflow import MlflowClient

    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    publish(store, NullTracking(), range(5))
    seen: list[str] = []

    def run(operations: int) -> bool:
        folder = tmp_path / str(operations)
        folder.mkdir()
        shutil.copyfile(migrated_database, folder / "mlflow.db")
        uri = f"sqlite:///{folder}/mlflow.db"
        with commits_counted(), dying_after(operations, tmp_path) as died:
            sync(store, open_tracking(uri, folder))
        there = MlflowClient(uri).get_experiment_by_name("yt8m")
        seen.append(only_run(uri).info.status if there and all_runs(uri) else "")
        if seen[-1] == "FINISHED":
            assert_complete(uri, range(5))
        assert synced(store, uri, folder) in ({"made": 1}, {"completed": 1}, {"complete": 1})
        assert_complete(uri, range(5))
        held = everything(uri)
        assert synced(store, uri, folder) == {"complete": 1}
        assert everything(uri) == held, "nothing is sent twice"
        return died()

    assert 30 < each_death(run, stride) < 400
    assert list(dict.fromkeys(seen)) == ["", "RUNNING", "FINISHED"]
