"""Every asset of a recipe's graph."""

import dagster as dg

from yt8m_assets.assets.data import build_data_assets
from yt8m_assets.assets.ensemble import build_ensemble_assets
from yt8m_assets.assets.models import build_model_assets
from yt8m_assets.assets.predictions import build_prediction_assets
from yt8m_assets.assets.shell import StepTags, untagged
from yt8m_assets.recipes.schema import Recipe


def build_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The assets of the four groups, in lineage order."""
    first = (*build_data_assets(recipe, step_tags), *build_model_assets(recipe, step_tags))
    last = (*build_prediction_assets(recipe, backfill, step_tags), *build_ensemble_assets(recipe, step_tags))
    return [*first, *last]
