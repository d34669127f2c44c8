"""Group `ensemble`: weights searched on the out-of-fold rankings, the submission, and the report."""

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.results import materialization
from yt8m_assets.assets.shell import ProgressSource, StepTags, asset_options, attempt, run_tags, untagged
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking


def build_ensemble_assets(recipe: Recipe, step_tags: StepTags = untagged) -> list[dg.AssetsDefinition]:
    """The three assets of the ensemble group."""

    @dg.asset(**asset_options(recipe, step_tags, "ensemble_weights"))
    def ensemble_weights(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        """How much each model's ranking counts: searched for the best MAP, and shrunk by what unseen videos say."""
        from yt8m_assets.stages.ensemble import search_ensemble

        tags, shown = run_tags(context), progress.open(context.log)
        with stage_errors(context):
            result = search_ensemble(
                recipe, attempt(context, recipe, store), tracking=tracking, progress=shown, run_tags=tags
            )
        return materialization(context, recipe, store, result)

    @dg.asset(**asset_options(recipe, step_tags, "submission"))
    def submission(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        """The challenge's CSV: for each rated class, the test segments that show it most surely, best first."""
        from yt8m_assets.stages.submission import make_submission

        tags, shown = run_tags(context), progress.open(context.log)
        with stage_errors(context):
            result = make_submission(
                recipe, attempt(context, recipe, store), tracking=tracking, progress=shown, run_tags=tags
            )
        return materialization(context, recipe, store, result)

    return [ensemble_weights, submission, _leaderboard(recipe, step_tags)]


def _leaderboard(recipe: Recipe, step_tags: StepTags) -> dg.AssetsDefinition:
    @dg.asset(**asset_options(recipe, step_tags, "leaderboard"))
    def leaderboard(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        """The report: each model's MAP with and without shifts, its weight, and the ensemble's with interval."""
        from yt8m_assets.reports.leaderboard import make_leaderboard

        tags, shown = run_tags(context), progress.open(context.log)
        with stage_errors(context):
            result = make_leaderboard(
                recipe, attempt(context, recipe, store), tracking=tracking, progress=shown, run_tags=tags
            )
        return materialization(context, recipe, store, result)

    return leaderboard
