"""Which models of a request are trained in one pass over the data."""

from collections.abc import Sequence

from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS
from yt8m_assets.training.config import TrainingConfig

READ_ALIKE = ("batch_size", "shuffle_buffer", "windows_per_video", "deterministic", "float32_matmul_precision")
"""What trainings of a pass have in common: the order of the examples, and torch's modes."""


def training_config(recipe: Recipe, asset: str, model_key: str) -> TrainingConfig:
    """How a model is trained for an asset."""
    return getattr(recipe.model(model_key), str(ASSETS[asset].training))


def plan_passes(recipe: Recipe, asset: str, model_keys: Sequence[str]) -> list[list[str]]:
    """The models of each pass, in order: one for those that take the same examples at each step.

    A model that is trained by several processes reads by itself. So does one that is fine-tuned: rated segments lie in
    memory for all models, and there is nothing to be read once.
    """
    passes: dict[object, list[str]] = {}
    for key in model_keys:
        config = training_config(recipe, asset, key)
        alike: object = tuple(getattr(config, field) for field in READ_ALIKE)
        alone = config.num_processes > 1 or ASSETS[asset].training == "finetuning"
        passes.setdefault(key if alone else alike, []).append(key)
    return list(passes.values())
