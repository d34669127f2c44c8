"""Every asset of a recipe's graph, and what `dg scaffold defs` has added below `orchestration/defs`."""

from pathlib import Path

import dagster as dg

from yt8m_assets.assets.data import build_data_assets
from yt8m_assets.assets.ensemble import build_ensemble_assets
from yt8m_assets.assets.models import build_fold_assets, build_model_assets
from yt8m_assets.assets.predictions import build_prediction_assets
from yt8m_assets.assets.shell import StepTags, untagged
from yt8m_assets.assets.study import build_study_assets
from yt8m_assets.assets.variants import build_variant_assets
from yt8m_assets.recipes.schema import Recipe

FOLDER = Path(__file__).with_name("defs")


def build_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The assets of the groups, in lineage order."""
    first = (*build_data_assets(recipe, step_tags), *build_model_assets(recipe, backfill, step_tags))
    folds = build_fold_assets(recipe, backfill, step_tags)
    last = (*build_prediction_assets(recipe, backfill, step_tags), *build_ensemble_assets(recipe, step_tags))
    asked = (*build_variant_assets(recipe, backfill, step_tags), *build_study_assets(recipe, backfill, step_tags))
    return [*first, *folds, *last, *asked]


def added_definitions() -> list[dg.Definitions]:
    """The definitions of the folder; none, and nothing imported, while it holds nothing of a person's."""
    added = [path for path in FOLDER.glob("*") if path.name not in ("__init__.py", "__pycache__")]
    return [dg.load_from_defs_folder(path_within_project=FOLDER)] if added else []
