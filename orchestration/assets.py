"""Every asset of a recipe's graph."""

import dagster as dg

from yt8m_assets.assets.data import build_data_assets
from yt8m_assets.assets.ensemble import build_ensemble_assets
from yt8m_assets.assets.models import build_model_assets
from yt8m_assets.assets.predictions import build_prediction_assets
from yt8m_assets.recipes.schema import Recipe


def build_assets(recipe: Recipe, backfill: str = "single_run") -> list[dg.AssetsDefinition]:
    """The assets of the four groups, in lineage order."""
    first = (*build_data_assets(recipe), *build_model_assets(recipe), *build_prediction_assets(recipe, backfill))
    return [*first, *build_ensemble_assets(recipe)]
