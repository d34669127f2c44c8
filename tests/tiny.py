"""A recipe so small that the whole graph runs in seconds: simulated videos, two narrow models, a few steps."""

from dataclasses import replace
from typing import Any

from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.recipes.schema import ModelRecipe, PredictionConfig, Recipe
from yt8m_assets.training.config import TrainingConfig

TRAINING = TrainingConfig(
    num_steps=3,
    batch_size=8,
    learning_rate=1e-3,
    window_frames=5,
    shuffle_buffer=16,
    checkpoint_every=2,
    log_every=1,
)
SIMULATION = SimulationConfig(
    num_classes=8,
    num_rated_classes=4,
    num_groups=4,
    num_train_videos=12,
    num_validate_videos=24,
    num_test_videos=6,
    num_train_shards=2,
    num_validate_shards=4,
    num_test_shards=2,
    min_seconds=15,
    max_seconds=20,
    max_interval_seconds=10,
)


def tiny_model(key: str, shifts: tuple[int, ...], **options: Any) -> ModelRecipe:
    """A narrow BERT under any key."""
    fine = replace(TRAINING, window_frames=None, evaluate_every=2, continue_schedule=False)
    values: dict[str, Any] = {
        "architecture": "bert_mean_l2h12",
        "overrides": {"num_layers": 1, "num_heads": 2, "intermediate_size": 8},
        "pretraining": TRAINING,
        "finetuning": fine,
    }
    return ModelRecipe(key=key, title=f"Tiny {key}", shifts=shifts, **(values | options))


def tiny_recipe(**fields: Any) -> Recipe:
    """The recipe; `fields` replaces some of its own."""
    data = DataConfig(
        simulation=SIMULATION,
        num_classes=SIMULATION.num_classes,
        holdout=HoldoutConfig(rule="seeded", fraction=0.5),
    )
    recipe = Recipe(
        name="tiny",
        data=data,
        models=(tiny_model("one", (0, 1)), tiny_model("two", (-1, 0, 1))),
        prediction=PredictionConfig(batch_size=64),
        search=SearchConfig(num_trials=30, num_initial_points=3, num_starts=1, num_folds=2),
        bootstrap_rounds=20,
    )
    return replace(recipe, **fields)
