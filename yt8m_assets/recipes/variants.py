"""Variants: a model of a recipe with other settings, under a key of its own, beside the one that the recipe has."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from models import create_model
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.loading import further_model
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import ModelRecipe, Recipe

SECTIONS = ("pretraining", "finetuning", "overrides")
"""What a variant may set: fields of a model's row in a recipe, as in a JSON recipe."""


def variant_key(base: str, name: str) -> str:
    """The key of a variant: its partition in the store, and its name in MLflow."""
    return f"{base}_{name}"


def with_variant(recipe: Recipe, base: str, name: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with one more model, last: `base` with some settings changed.

    It starts from the base's pre-trained weights unless it changes pre-training, or the shape of the weights. Raises
    ConfigError as a JSON recipe with these settings does, and where the recipe has such a key.
    """
    key, origin = variant_key(base, name), recipe.model(base)
    if key in recipe.model_keys:
        raise ConfigError(
            f"variant {name!r} of {base}: recipe {recipe.name!r} has a model {key!r}; choose another name"
        )
    wrong = sorted(set(settings) - set(SECTIONS))
    if wrong:
        raise ConfigError(f"variant {name!r} of {base}: sets {wrong[0]!r}; a variant may set {', '.join(SECTIONS)}")
    row = further_model(recipe, key, {"base": base, **settings})
    row = replace(row, title=f"{origin.title}, {name}")
    if row.pretraining == origin.pretraining and _weights(recipe, row) == _weights(recipe, origin):
        row = replace(row, starts_from=origin.starts_from or base)
    else:
        row = replace(row, starts_from="")
    return replace(recipe, models=(*recipe.models, row))


def _weights(recipe: Recipe, row: ModelRecipe) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a model's weights; nothing is allocated. Raises ConfigError for overrides that cannot be."""
    import torch

    data = recipe.data
    try:
        with torch.device("meta"):
            model = create_model(row.architecture, data.num_classes, data.feature_sizes, **row.overrides)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"models.{row.key}.overrides = {dict(row.overrides)}: {error}") from error
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def as_further_model(recipe: Recipe, key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands below `models` in a JSON recipe that has the variant `key` of a wider `recipe` as one of its models.

    Such a recipe finds what was made of the variant, and its ensemble counts it in.
    """
    row = recipe.model(key)
    start = {"starts_from": row.starts_from} if row.starts_from else {}
    return {"title": row.title, **start, **plain(settings)}
