"""A tiny dataset in real format, a recipe over it, and a store with its data artifacts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.factory import frame_record
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.records.examples import encode_sequence_example
from yt8m_assets.data.records.video import SegmentLabels
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import ModelRecipe, Recipe
from yt8m_assets.stages.data import make_holdout_ratings, make_shards
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.config import TrainingConfig

FEATURE_SIZES = (16, 8)
NUM_CLASSES = 6
RATED = (0, 1, 2, 3)

PRETRAINING = TrainingConfig(
    num_steps=12, batch_size=8, learning_rate=3e-3, checkpoint_every=5, log_every=1, shuffle_buffer=16
)
FINETUNING = replace(PRETRAINING, num_steps=12, evaluate_every=4, label_weighting="rated")
MIX = ModelRecipe(
    key="mix",
    title="Mix (tiny)",
    architecture="mix_nextvlad_iter60",
    overrides={"num_clusters": 4, "hidden_size": 16, "num_groups": 4, "gating_reduction": 4, "num_sampled_frames": 6},
    pretraining=PRETRAINING,
    finetuning=FINETUNING,
)
"""Has dropout, batch norm and frame sampling."""
BERT = ModelRecipe(
    key="bert",
    title="BERT (tiny)",
    architecture="bert_mean_l2h12",
    overrides={"num_heads": 2, "intermediate_size": 16},
    pretraining=replace(PRETRAINING, window_frames=5),
    finetuning=FINETUNING,
)
SCORER = ModelRecipe(
    key="scorer",
    title="Frame scorer (tiny)",
    architecture="frame_scorer",
    overrides={"width": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
    pretraining=PRETRAINING,
    finetuning=FINETUNING,
)
"""Sees whole videos."""


def write_shards(folder: Path, num_videos: int = 36, num_shards: int = 6) -> None:
    """Shards from which one can learn: `train*.tfrecord` with video labels, `validate*.tfrecord` with ratings.

    `labelled/validate*.tfrecord` holds the videos of the latter with video labels, as the challenge's 2/ does.
    """
    rng = np.random.default_rng(5)
    size = sum(FEATURE_SIZES)
    looks = rng.normal(0, 45, (NUM_CLASSES, size))
    (folder / "labelled").mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        train, rated, labelled = [], [], []
        for number in range(shard, num_videos, num_shards):
            labels = sorted({int(rng.integers(NUM_CLASSES)), int(rng.integers(len(RATED)))})
            frames = rng.normal(128, 30, (int(rng.integers(12, 30)), size)) + looks[labels].sum(0)
            pixels = frames.clip(0, 255).astype(np.uint8)
            train.append((f"t{number:05d}", pixels, labels, None))
            ratings = SegmentLabels(
                start_times=np.array([0, 0, 5]),
                class_ids=np.array([RATED[number % 4], RATED[(number + 1) % 4], RATED[number % 4]]),
                scores=np.array([c in labels for c in (number % 4, (number + 1) % 4, number % 4)], np.float32),
            )
            rated.append((f"v{number:05d}", pixels, None, ratings))
            labelled.append((f"v{number:05d}", pixels, labels, None))
        for name, records in (("train", train), ("validate", rated), ("labelled/validate", labelled)):
            content = b"".join(
                frame_record(encode_sequence_example(i, p, labels, s, feature_sizes=FEATURE_SIZES))
                for i, p, labels, s in records
            )
            (folder / f"{name}{shard:04d}.tfrecord").write_bytes(content)
    (folder / "classes.csv").write_text("Index\n" + "".join(f"{c}\n" for c in RATED))


def make_recipe(folder: Path, *models: ModelRecipe, holds_out_labels: bool = False, **data: Any) -> Recipe:
    """A recipe over the shards of `write_shards`; with `holds_out_labels` some video labels are held out, too."""
    labelled = (str(folder / "labelled/validate*.tfrecord"),) if holds_out_labels else ()
    return Recipe(
        name="tiny",
        data=DataConfig(
            pretraining=(str(folder / "train*.tfrecord"), *labelled),
            segments=(str(folder / "validate*.tfrecord"),),
            test=(str(folder / "validate*.tfrecord"),),
            segment_classes_uri=str(folder / "classes.csv"),
            num_classes=NUM_CLASSES,
            feature_sizes=FEATURE_SIZES,
            max_frames=30,
            holdout=HoldoutConfig(rule="seeded", fraction=0.34),
            **data,
        ),
        models=models or (MIX, BERT),
    )


def open_store(folder: Path) -> ArtifactStore:
    """A new store object over the artifacts of a folder; what another one has verified is verified again."""
    return ArtifactStore(str(folder / "artifacts"), folder / "cache")


def prepare_store(folder: Path, recipe: Recipe) -> ArtifactStore:
    """A store with the data artifacts that training needs."""
    store = open_store(folder)
    publish_data(recipe, store)
    return store


def publish_data(recipe: Recipe, store: ArtifactStore) -> None:
    """The data artifacts that training needs."""
    make_shards(recipe, store, "pretraining_shards", progress=NullProgress())
    make_shards(recipe, store, "segment_shards", progress=NullProgress())
    make_holdout_ratings(recipe, store, progress=NullProgress())
