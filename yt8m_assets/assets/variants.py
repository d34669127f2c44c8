"""Group `variants`: models of the recipe with other settings, launched with a form; no part of the recipe's graph."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from yt8m_assets.assets.failures import asked_for, stage_errors
from yt8m_assets.assets.forms import settings_of, variant_form
from yt8m_assets.assets.models import AFRESH_TAG, FALLBACK_TAG
from yt8m_assets.assets.results import everything_published, published, recipe_mark
from yt8m_assets.assets.shell import (
    GPU_POOL,
    OWNERS,
    RECIPE_TAG,
    RETRY,
    ProgressSource,
    StepTags,
    run_tags,
    untagged,
)
from yt8m_assets.assets.verdicts import refuse_failed_parents
from yt8m_assets.partitions import backfill_policy, beta_accepted, partitions_of
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

GROUP, VARIANT = "variants", "model_variant"


def request_options(recipe: Recipe, step_tags: StepTags, name: str) -> dict[str, Any]:
    """Arguments of `@dg.asset` for what is made of a model on request, and by nobody else."""
    return {
        "name": name,
        "group_name": GROUP,
        "kinds": {"pytorch", "mlflow"},
        "deps": list(ASSETS["finetuned_model"].parents),
        "partitions_def": partitions_of(recipe, "finetuned_model"),
        "pool": GPU_POOL,
        "owners": OWNERS,
        "retry_policy": RETRY,
        "op_tags": step_tags("finetuned_model"),
        "tags": {"stage": GROUP},
    }


def request_tools(
    context: dg.AssetExecutionContext, recipe: Recipe, tracking: Tracking, progress: ProgressSource
) -> dict[str, Any]:
    """What the stage of a request is told. Raises ParentCheckError where its parents failed their checks."""
    context.instance.add_run_tags(context.run.run_id, {RECIPE_TAG: recipe_mark(recipe)})
    refuse_failed_parents(context.instance, recipe, [Node("finetuned_model", key) for key in context.partition_keys])
    options: dict[str, Any] = {"tracking": tracking, "progress": progress.open(context.log)}
    options["allow_fallback"] = asked_for(context.run, FALLBACK_TAG)
    return options | {"start_afresh": asked_for(context.run, AFRESH_TAG)}


@beta_accepted()
def build_variant_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The asset of variants."""
    policy = backfill_policy(backfill)

    @dg.asset(config_schema=variant_form(), backfill_policy=policy, **request_options(recipe, step_tags, VARIANT))
    def model_variant(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        """A model trained with other settings than the recipe's, and its ranking of the hold-out.

        Choose a model, open the launchpad, and say in the config what is to be different, and by which name:
        `ops: {model_variant: {config: {name: lr3e4, finetuning: {learning_rate: 3e-4}}}}`. The variant stands beside
        the recipe's own model in store, MLflow and the table below; the recipe, and what is made by it, stay as they
        are. Without a name nothing is trained, and the table is made anew.
        """
        from yt8m_assets.assets.comparison import comparison_metadata, comparisons
        from yt8m_assets.stages.variants import Variant, keep_variant, train_variant

        form = context.op_execution_context.op_config
        with stage_errors(context):
            if not form["name"]:
                yield from comparisons(context, recipe, store)
            options = request_tools(context, recipe, tracking, progress)
            for base in context.partition_keys if form["name"] else ():
                asked = Variant(base=base, name=form["name"], settings=settings_of(form))
                variant = keep_variant(recipe, store, asked)
                tags = {**run_tags(context, base), "variant": variant.name, "variant_of": base}
                model, ranking = train_variant(recipe, store, variant, run_tags=tags, **options)
                shown = comparison_metadata(recipe, store, base, variant.key, ranking)
                yield from published(context, variant.add_to(recipe), store, {base: model}, shown)
        yield everything_published()

    return [model_variant]
