"""What a release leaves for those after it: a small store, written by it, that every later version must read.

    python -m tests.golden.release     (make golden)

writes tests/golden/releases/VERSION once, before the release, with the version that pyproject.toml names:

    shards/       36 videos of 24 bytes a second, from which the store was made
    artifacts/    every asset of `recipe` with pictures of a few points, and the checkpoints of a pre-training
                  of `half_trained` that was asked to stop
    shards.index  the index of a shard, as an unfinished index pass leaves it
    losses.json   what that pre-training's steps cost when nobody stops it

A released folder is never written again, and this recipe never changes: what is stale in an old folder is stale in the
stores of users. A release that needs more adds to what is written, not to what was.
"""

import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.memory_tracking import MemoryTracking
from tests.training.support import write_shards
from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import ModelRecipe, PredictionConfig, Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import TrainingPreempted

RELEASES = Path(__file__).parent / "releases"
FEATURE_SIZES = (16, 8)
STOPPED_AFTER = 9
NUM_STEPS = 12
INDEXED = "validate0000.tfrecord"
_PRETRAINING = TrainingConfig(
    num_steps=NUM_STEPS, batch_size=8, learning_rate=3e-3, checkpoint_every=5, log_every=1, shuffle_buffer=16
)
_FINETUNING = replace(_PRETRAINING, evaluate_every=4, label_weighting="rated")


def _model(key: str, architecture: str, window_frames: int | None, **overrides: int) -> ModelRecipe:
    pretraining = replace(_PRETRAINING, window_frames=window_frames)
    return ModelRecipe(
        key=key,
        title=f"Golden {key}",
        shifts=(0, 1),
        architecture=architecture,
        overrides=overrides,
        pretraining=pretraining,
        finetuning=_FINETUNING,
    )


_MODELS = (
    _model("bert", "bert_mean_l2h12", 5, num_heads=2, intermediate_size=16),
    _model(
        "mix",
        "mix_nextvlad_iter60",
        None,
        num_clusters=4,
        hidden_size=16,
        num_groups=4,
        gating_reduction=4,
        num_sampled_frames=6,
    ),
    _model("scorer", "frame_scorer", None, width=16, num_layers=1, num_heads=2, intermediate_size=16),
)
_HALF = replace(_MODELS[1], key="half", title="Half-trained")


def recipe(shards: Path) -> Recipe:
    """The recipe of the golden stores, over their shards."""
    return Recipe(
        name="golden",
        data=DataConfig(
            pretraining=(str(shards / "train*.tfrecord"), str(shards / "labelled/validate*.tfrecord")),
            segments=(str(shards / "validate*.tfrecord"),),
            test=(str(shards / "train*.tfrecord"),),
            segment_classes_uri=str(shards / "classes.csv"),
            num_classes=6,
            feature_sizes=FEATURE_SIZES,
            max_frames=30,
            holdout=HoldoutConfig(rule="seeded", fraction=0.34),
        ),
        models=_MODELS,
        prediction=PredictionConfig(batch_size=64),
        search=SearchConfig(num_trials=30, num_initial_points=3, num_starts=1, num_folds=2),
        second_stage=True,
        bootstrap_rounds=20,
    )


def half_trained(shards: Path) -> Recipe:
    """The same with a model of which there is a checkpoint only."""
    complete = recipe(shards)
    return replace(complete, models=(*complete.models, _HALF))


def pretrain_half(shards: Path, store: ArtifactStore) -> list[float]:
    """Pre-train that model, or continue; the loss of each step that this process did."""
    from yt8m_assets.stages.training import pretrain

    tracking = MemoryTracking()
    pretrain(half_trained(shards), store, "half", tracking=tracking, progress=NullProgress(), run_tags={})
    return [value for name, value, _ in tracking.runs[0].metrics if name == "train/loss"]


def _stop_half(shards: Path, store: ArtifactStore) -> None:
    from yt8m_assets.training.step import Stepper

    run = Stepper.run

    def stopping(self: Stepper, batch: object, step: int, rate: float) -> object:
        if step == STOPPED_AFTER - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, batch, step, rate)  # type: ignore[arg-type]

    with patch.object(Stepper, "run", stopping):
        try:
            pretrain_half(shards, store)
        except TrainingPreempted:
            return
    raise AssertionError("it was not stopped")


def write(target: Path) -> None:
    """Write a release's folder."""
    from matplotlib.figure import Figure

    from orchestration.driver import open_driver
    from orchestration.settings import Settings
    from orchestration.state import prepare_state

    def coarse(figure: Figure, path: Path, **options: Any) -> None:
        savefig(figure, path, **{**options, "dpi": 8})

    savefig = Figure.savefig
    with tempfile.TemporaryDirectory() as folder, patch.object(Figure, "savefig", coarse):
        shards = Path(folder) / "shards"
        write_shards(shards)
        state = prepare_state(Path(folder) / "state")
        settings = Settings.from_environment(state, {})
        with open_driver(recipe(shards), state, settings, NullProgress()) as driver:
            driver.materialize()
        _stop_half(shards, settings.open_store())
        made = Path(folder) / "release"
        ignored = shutil.ignore_patterns(".*")  # locks
        shutil.copytree(state.artifacts, made / "artifacts", ignore=ignored)
        shutil.copytree(shards, made / "shards")
        index = build_index(str(shards / INDEXED), Reading(feature_sizes=FEATURE_SIZES))
        (made / "shards.index").write_bytes(replace(index, uri=INDEXED).to_bytes())
        for checkpoints in state.artifacts.glob("checkpoints/pretrained_model/half"):
            shutil.rmtree(checkpoints)
        losses = pretrain_half(shards, settings.open_store())
        (made / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
        shutil.copytree(made, target)


if __name__ == "__main__":
    version = importlib.metadata.version("yt8m-assets")
    if (RELEASES / version).exists():
        sys.exit(f"{RELEASES / version} is there: a release's files never change; raise the version in pyproject.toml")
    write(RELEASES / version)
    files = [path for path in (RELEASES / version).rglob("*") if path.is_file()]
    sys.stdout.write(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB\n")
