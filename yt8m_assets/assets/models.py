"""Group `models`: each architecture, pre-trained on video labels and fine-tuned on segment ratings."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from yt8m_assets.assets.failures import asked_for, stage_errors
from yt8m_assets.assets.results import everything_published, published
from yt8m_assets.assets.shell import ProgressSource, StepTags, asset_options, attempt, run_tags, untagged
from yt8m_assets.partitions import backfill_policy, beta_accepted
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

FALLBACK_TAG = "yt8m/allow_fallback"
"""Run tag: with the value "true", a damaged newest checkpoint is passed over for the one before it."""

AFRESH_TAG = "yt8m/start_afresh"
"""Run tag: with the value "true", training throws away checkpoints of another configuration instead of refusing."""


@beta_accepted()
def build_model_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The assets of trained models, partitioned by model; `backfill` is a policy's name."""
    texts = {
        "pretrained_model": "A frame-level model trained on the video labels of the pre-training shards; an "
        "interrupted run continues.\n\nOne run over several models reads the data once for all of them, and publishes "
        "each as soon as it is trained; with YT8M_BACKFILL=per_partition every model gets a run of its own.",
        "finetuned_model": "The pre-trained model after training on segment ratings: the checkpoint with the best "
        "hold-out MAP.",
        "refitted_model": "The pre-trained model after training on all segment ratings, those of the hold-out among "
        "them, for as many steps as were best on the split: what predicts the test.",
    }
    policy = backfill_policy(backfill)
    return [
        _trained_model(recipe, asset_options(recipe, step_tags, name, description=text, backfill_policy=policy))
        for name, text in texts.items()
        if recipe.refit or name != "refitted_model"
    ]


@beta_accepted()
def build_fold_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """The folds' rankings by model, where the recipe has folds."""
    if not recipe.folds:
        return []
    policy = backfill_policy(backfill)

    @dg.asset(**asset_options(recipe, step_tags, "fold_ranking", backfill_policy=policy))
    def fold_ranking(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        """Rated videos that are trained on, each ranked by the model as it is fine-tuned without the video's fold."""
        from yt8m_assets.stages.folds import rank_folds

        options: Any = {"tracking": tracking, "progress": progress.open(context.log)}
        options["allow_fallback"] = asked_for(context.run, FALLBACK_TAG)
        options["start_afresh"] = asked_for(context.run, AFRESH_TAG)
        with stage_errors(context):
            used = attempt(context, recipe, store)
            for key in context.partition_keys:
                result = rank_folds(recipe, used, key, run_tags=run_tags(context, key), **options)
                yield from published(context, recipe, store, {key: result})
        yield everything_published()

    return [fold_ranking]


def _trained_model(recipe: Recipe, declared: dict[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(**declared)
    def trained_model(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        from yt8m_assets.stages.training import train_models

        options: Any = {
            "tracking": tracking,
            "progress": progress.open(context.log),
            "run_tags": lambda key: run_tags(context, key),
            "allow_fallback": asked_for(context.run, FALLBACK_TAG),
            "start_afresh": asked_for(context.run, AFRESH_TAG),
        }
        with stage_errors(context):
            used = attempt(context, recipe, store)
            for key, result in train_models(recipe, used, declared["name"], context.partition_keys, **options):
                yield from published(context, recipe, store, {key: result})
        yield everything_published()

    return trained_model
