"""Group `variants`: the study of a model's settings, launched with a form."""

from collections.abc import Iterator

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.forms import study_form
from yt8m_assets.assets.results import everything_published, published
from yt8m_assets.assets.shell import ProgressSource, StepTags, run_tags, untagged
from yt8m_assets.assets.variants import request_options, request_tools
from yt8m_assets.partitions import backfill_policy, beta_accepted
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

STUDY = "study"


@beta_accepted()
def build_study_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The asset of studies."""
    policy = backfill_policy(backfill)

    @dg.asset(config_schema=study_form(), backfill_policy=policy, **request_options(recipe, step_tags, STUDY))
    def study(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        """Settings of a model tried one after another, as many as a budget of steps allows; the best become a recipe.

        Choose a model, open the launchpad, and give the budget and, if the usual one will not do, the space:
        `ops: {study: {config: {steps: 600, space: {finetuning.learning_rate: [0.0001, 0.01]}}}}`. Trials are variants,
        and children of one run in MLflow; those that lag behind half of the others end early. A study that was
        interrupted goes on. Without a budget nothing is trained, and the table of the model's variants is made anew.
        """
        from yt8m_assets.assets.comparison import comparisons
        from yt8m_assets.recipes.study import StudyConfig
        from yt8m_assets.stages.study import run_study

        form = context.op_execution_context.op_config
        with stage_errors(context):
            if not form["steps"]:
                yield from comparisons(context, recipe, store)
            options = request_tools(context, recipe, tracking, progress)
            for base in context.partition_keys if form["steps"] else ():
                tags = run_tags(context, base)
                result = run_study(recipe, store, base, StudyConfig(**form), run_tags=tags, **options)
                yield from published(context, recipe, store, {base: result})
        yield everything_published()

    return [study]
