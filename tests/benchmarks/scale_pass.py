"""Rows of bench_scale about one reading for several models: what a pass costs against a run for each."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.scale_index import QUIET, make_data
from tests.data.factory import encode, frame_record
from tests.slow_bucket import slow_bucket
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.training import train_models
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking

SHARDS, VIDEOS, FRAMES = 8, 24, 60
NUM_CLASSES = 200
READING_SHARE = 3 / 4


def write_videos(folder: Path) -> None:
    """Shards of full-width frames to train on, and a rated and a test one."""
    generator = np.random.default_rng(4)
    folder.mkdir(parents=True)
    for name, count in {"train": SHARDS, "validate": 2, "test": 1}.items():
        for shard in range(count):
            records = []
            for number in range(VIDEOS if name == "train" else 1):
                frames = generator.integers(0, 256, (FRAMES, sum(FEATURE_SIZES)), dtype=np.uint8)
                rated = SegmentLabels(np.array([0, 5]), np.array([1, 2]), np.array([1, 0], np.float32))
                labels = generator.integers(0, NUM_CLASSES, 3)
                video_id = f"{name[:2]}{shard:04d}{number:04d}"
                video = Video(video_id, frames, np.unique(labels), rated if name == "validate" else None)
                records.append(frame_record(encode(video, FEATURE_SIZES)))
            (folder / f"{name}{shard:04d}.tfrecord").write_bytes(b"".join(records))
    (folder / "classes.csv").write_text("Index\n1\n2\n")


def demo_models(root: str, num_steps: int, count: int = 9) -> Recipe:
    """The demo's models over the data below `root`."""
    data = DataConfig(
        pretraining=(f"{root}/train*.tfrecord",),
        segments=(f"{root}/validate*.tfrecord",),
        test=(f"{root}/test*.tfrecord",),
        segment_classes_uri=f"{root}/classes.csv",
        num_classes=NUM_CLASSES,
        holdout=HoldoutConfig(rule="seeded", fraction=0.5),
        memory_budget=1,
    )
    changes: Any = {"num_steps": num_steps, "evaluation_videos": 0, "checkpoint_every": 10**6, "shuffle_buffer": 64}
    recipe = load_recipe("demo")
    models = [replace(model, pretraining=replace(model.pretraining, **changes)) for model in recipe.models]
    return replace(recipe, data=data, models=tuple(models[:count]))


class Trainings:
    """Trains the demo's models, on a machine that has nothing or on one that has read everything."""

    def __init__(self, folder: Path, root: str, num_steps: int, count: int) -> None:
        self.folder, self.number = folder, 0
        self.recipe = demo_models(root, num_steps, count)
        self.published = folder / "published"
        make_data(self.recipe, ArtifactStore(str(self.published), folder / "warm"))

    def seconds(self, keys: Sequence[str], machine: str = "") -> float:
        """Seconds to train some models in one run; `machine` names one that is used again."""
        self.number += 1
        store = ArtifactStore(str(self.published), self.folder / (machine or f"machine {self.number}"))
        for key in keys:
            store.delete(f"pretrained_model/{key}")
        options: Any = {"tracking": NullTracking(), "progress": QUIET, "run_tags": {}}
        began = time.perf_counter()
        assert len(list(train_models(self.recipe, store, "pretrained_model", keys, **options))) == len(keys)
        return time.perf_counter() - began


def warm(folder: Path, num_steps: int = 12, count: int = 9, rounds: int = 3) -> float:
    """Seconds of a pass over all models / seconds of a run for each, with everything on the disk; medians."""
    write_videos(folder / "data")
    trainings = Trainings(folder, str(folder / "data"), num_steps, count)
    keys = trainings.recipe.model_keys
    trainings.seconds(keys[:1], "warm")
    ratios = []
    for _ in range(rounds):
        alone = sum(trainings.seconds([key], "warm") for key in keys)
        ratios.append(trainings.seconds(keys, "warm") / alone)
    return float(np.median(ratios))


def from_a_bucket(folder: Path, num_steps: int = 12, count: int = 9) -> float:
    """The same where each run starts with an empty disk, and reading is three quarters of a model's run."""
    write_videos(folder / "data")
    local = Trainings(folder / "local", str(folder / "data"), num_steps, count)
    keys = local.recipe.model_keys
    local.seconds(keys[:1], "warm")
    computing = sum(local.seconds([key], "warm") for key in keys) / len(keys)
    size = sum(path.stat().st_size for path in (folder / "data").glob("train*"))
    with slow_bucket(mb_per_second=size / 1e6 / (computing * READING_SHARE / (1 - READING_SHARE))) as bucket:
        remote = Trainings(folder / "remote", bucket.load(folder / "data", "yt/data"), num_steps, count)
        alone = sum(remote.seconds([key]) for key in keys)
        return remote.seconds(keys) / alone


def bytes_read(folder: Path, num_steps: int = 12, count: int = 9) -> float:
    """Bytes that a pass over all models reads from a bucket / bytes that a run of one of them reads."""
    write_videos(folder / "data")
    with slow_bucket() as bucket:
        trainings = Trainings(folder, bucket.load(folder / "data", "yt/data"), num_steps, count)
        keys, found = trainings.recipe.model_keys, []
        for some in (keys[:1], keys):
            bucket.reset()
            trainings.seconds(some)
            found.append(bucket.counts().bytes)
    return found[1] / found[0]
