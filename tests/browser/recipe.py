"""The demo's nine models, made so small that a browser test can wait for them: a recipe file for YT8M_RECIPE.

The pictures of README.md are those of the demo itself: YT8M_BROWSER_RECIPE=demo, with its state as YT8M_BROWSER_STATE.
"""

import os
from dataclasses import replace
from typing import Any

from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.recipes import demo
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.training.config import TrainingConfig

SIMULATION = replace(
    demo.SIMULATION,
    num_classes=24,
    num_rated_classes=12,
    num_groups=6,
    num_train_videos=90,
    num_validate_videos=90,
    num_test_videos=20,
    num_train_shards=2,
    num_validate_shards=6,
    num_test_shards=2,
    min_seconds=30,
    max_seconds=45,
    max_interval_seconds=15,
)
NARROW: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 32},
    "gated": {"num_clusters": 4, "hidden_size": 32, "bn_momentum": 0.1},
    "mix": {"num_clusters": 4, "hidden_size": 32, "bn_momentum": 0.1},
}


def _short(training: TrainingConfig, num_steps: int) -> TrainingConfig:
    evaluate_every = 4 if training.evaluate_every else None
    return replace(
        training,
        num_steps=num_steps,
        batch_size=8,
        warmup_steps=2,
        learning_rate=2e-3,
        shuffle_buffer=64,
        evaluate_every=evaluate_every,
        checkpoint_every=num_steps,
        log_every=1,
    )


def _narrow(model: ModelRecipe) -> ModelRecipe:
    assert model.finetuning is not None
    return replace(
        model,
        overrides=NARROW[model.key.split("_")[0]],
        pretraining=_short(model.pretraining, 12),
        finetuning=_short(model.finetuning, 8),
    )


SMALL = replace(
    demo.RECIPE,
    name="browser",
    data=replace(demo.RECIPE.data, simulation=SIMULATION, num_classes=SIMULATION.num_classes),
    models=tuple(_narrow(model) for model in demo.RECIPE.models),
    search=SearchConfig(num_trials=60, num_initial_points=6, num_starts=2, num_folds=2),
    bootstrap_rounds=20,
)
RECIPE = demo.RECIPE if os.environ.get("YT8M_BROWSER_RECIPE") == "demo" else SMALL
