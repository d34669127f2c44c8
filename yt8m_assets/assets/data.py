"""Group `data`: which shards there are, which are held out, and the ratings of the held-out ones."""

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.results import materialization
from yt8m_assets.assets.shell import ProgressSource, StepTags, asset_options, attempt, untagged
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore

_DESCRIPTIONS = {
    "pretraining_shards": "Every shard of the pre-training data (frame-level records with video labels): URI, size, "
    "checksum and record counts. Shards that are held out are listed and never trained on.",
    "segment_shards": "Every shard with segment ratings, with the hold-out manifest that pre-training, fine-tuning, "
    "out-of-fold predictions and ensemble share.",
    "test_shards": "Every shard of the unlabelled test data, which the submission ranks.",
}


def build_data_assets(recipe: Recipe, step_tags: StepTags = untagged) -> list[dg.AssetsDefinition]:
    """The four assets of the data group."""
    shards = [_shards(recipe, step_tags, name) for name in _DESCRIPTIONS]

    @dg.asset(**asset_options(recipe, step_tags, "holdout_ratings"))
    def holdout_ratings(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        """The raters' verdicts on the segments of the held-out shards: what every MAP here is measured against."""
        from yt8m_assets.stages.data import make_holdout_ratings

        with stage_errors(context):
            result = make_holdout_ratings(recipe, attempt(context, recipe, store), progress=progress.open(context.log))
        return materialization(context, recipe, store, result)

    return [*shards, holdout_ratings]


def _shards(recipe: Recipe, step_tags: StepTags, name: str) -> dg.AssetsDefinition:
    @dg.asset(**asset_options(recipe, step_tags, name, description=_DESCRIPTIONS[name]))
    def shards(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        from yt8m_assets.stages.data import make_shards

        with stage_errors(context):
            result = make_shards(recipe, attempt(context, recipe, store), name, progress=progress.open(context.log))
        return materialization(context, recipe, store, result)

    return shards
