"""Held-out videos reach no training, whatever the shards are called and whoever starts it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.memory_tracking import MemoryTracking
from tests.stages.test_audit import take_back_hold_out
from tests.training.support import BERT, make_recipe, prepare_store, write_shards
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.folds import require_disjoint
from yt8m_assets.errors import DataError
from yt8m_assets.progress import Counter, NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.data import read_shards
from yt8m_assets.stages.indexing import read_video_ids
from yt8m_assets.stages.lineage import current_manifest, resolve_inputs
from yt8m_assets.stages.locating import held_out_shards
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import finetune, make_job, pretrain
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullRun
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.job import TrainingJob, run_alone
from yt8m_assets.training.trainer import Trainer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rated shards validate0000..5; their videos with video labels in two files of other names, three shards in each.

    And shards of other videos that are called as rated ones are.
    """
    folder = tmp_path / "data"
    write_shards(folder)
    labelled = sorted((folder / "labelled").iterdir())
    for name, parts in (("validate00", labelled[::2]), ("validate10", labelled[1::2])):
        (folder / "labelled" / f"{name}.tfrecord").write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in labelled:
        part.unlink()
    for number in range(5):  # the sixth keeps its name
        shutil.move(folder / f"train{number:04d}.tfrecord", folder / "labelled" / f"validate{number:04d}.tfrecord")
    return folder


@pytest.fixture
def recipe(data: Path) -> Recipe:
    return make_recipe(data, BERT, holds_out_labels=True)


@pytest.fixture
def store(tmp_path: Path, recipe: Recipe) -> ArtifactStore:
    return prepare_store(tmp_path, recipe)


def held_out_ids(recipe: Recipe, store: ArtifactStore) -> set[str]:
    """Read from the held-out rated shards themselves."""
    uris = read_shards(recipe, store, "segment_shards").uris(held_out=True)
    sizes = recipe.data.feature_sizes
    return {video.video_id for uri in uris for video in read_shard(uri, feature_sizes=sizes)}


def job_of(recipe: Recipe, store: ArtifactStore, asset: str = "pretrained_model") -> TrainingJob:
    return make_job(recipe, store, resolve_inputs(recipe, store, Node(asset, "bert")), False)


def test_the_hold_out_goes_by_video_id_and_is_counted(recipe: Recipe, store: ArtifactStore) -> None:
    expected = held_out_ids(recipe, store)
    assert len(expected) == 12
    shards = read_shards(recipe, store, "pretraining_shards")
    assert not shards.uris(held_out=True)  # none is held out as a whole
    counted = {shard.name: shard.num_held_out for shard in shards.shards if shard.num_held_out}
    assert counted.keys() <= {"validate00.tfrecord", "validate10.tfrecord"}  # and none for its name alone
    assert sum(counted.values()) == 12
    metadata = store.require("pretraining_shards").metadata
    assert (metadata["num_videos"], metadata["num_held_out_videos"]) == (72, 12)
    published = read_video_ids(store, store.require("pretraining_shards"), held_out=True)
    assert {name.decode() for ids in published.values() for name in ids.tolist()} == expected


def test_what_is_trained_on_and_scored_on_are_the_two_sides(recipe: Recipe, store: ArtifactStore) -> None:
    job, expected = job_of(recipe, store), held_out_ids(recipe, store)
    source: Any = job.data.stream(job.config, job.spec.build(), Team())  # type: ignore[arg-type]
    trained = set(source.videos.video_ids)
    assert len(trained) == 60
    assert not trained & expected
    assert {f"t{number:05d}" for number in range(36)} < trained  # those that share a name with a rated shard, too
    scored = job.data.holdout_videos(job.config)
    assert scored.videos.video_ids
    assert set(scored.videos.video_ids) <= expected


@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_training_refuses_held_out_videos_before_its_first_step(
    recipe: Recipe, store: ArtifactStore, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published shards that know nothing of the hold-out (an older version, a foreign tool): whoever starts it."""
    options: Any = {"tracking": MemoryTracking(), "progress": NullProgress(), "run_tags": {}}
    name = min(held_out_ids(recipe, store))
    if stage is pretrain:
        take_back_hold_out(store)
    else:
        pretrain(recipe, store, "bert", **options)
        job = job_of(recipe, store, "finetuned_model")
        data = dataclasses.replace(job.data, shards=job.data.shards + job.data.holdout_shards)
        leaking = dataclasses.replace(job, data=data)
        monkeypatch.setattr("yt8m_assets.stages.training.make_job", lambda *_: leaking)
    monkeypatch.setattr(Trainer, "run", lambda trainer: pytest.fail("a step was made"))
    with pytest.raises(DataError, match=rf"12 videos are both held out and trained on: {name} in \S+"):
        stage(recipe, store, "bert", **options)
    asset = "pretrained_model/bert" if stage is pretrain else "finetuned_model/bert"
    assert store.manifest(asset) is None


def test_a_job_run_directly_refuses_them_too(recipe: Recipe, store: ArtifactStore, tmp_path: Path) -> None:
    job = job_of(recipe, store)
    everything = tuple(dataclasses.replace(shard, held_out=None) for shard in job.data.shards)
    job = dataclasses.replace(job, data=dataclasses.replace(job.data, shards=everything))
    with pytest.raises(DataError, match="12 videos are both held out and trained on"):
        run_alone(job, tmp_path / "out", team=Team(), tracked=NullRun(), task=Counter(), stop=StopRequest())


def test_other_held_out_videos_make_the_shards_of_pretraining_stale(recipe: Recipe, store: ArtifactStore) -> None:
    assert current_manifest(recipe, store, Node("pretraining_shards")) is not None
    held_out, trained_on = (read_shards(recipe, store, "segment_shards").uris(side)[0] for side in (True, False))
    shutil.copyfile(trained_on, held_out)  # the names of the rated shards stay
    assert current_manifest(recipe, store, Node("pretraining_shards")) is None


def test_the_seed_of_the_rule_counts(recipe: Recipe) -> None:
    uris = [f"/data/validate{number:04d}.tfrecord" for number in range(9)]

    def chosen(seed: int) -> frozenset[str]:
        holdout = dataclasses.replace(recipe.data.holdout, seed=seed)
        changed = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, holdout=holdout))
        return frozenset(held_out_shards(changed, uris))

    assert chosen(1) == chosen(1)
    assert len({chosen(seed) for seed in range(6)}) > 3


def test_two_sides_that_share_nothing_are_fine() -> None:
    require_disjoint([("a", ["x"]), ("b", ["y"])], {"c": ["z"]})
    with pytest.raises(DataError, match="1 videos are both held out and trained on: y in b, c"):
        require_disjoint([("a", ["x"]), ("b", ["y"])], {"c": ["y"]})
