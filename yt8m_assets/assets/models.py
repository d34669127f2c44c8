"""Group `models`: each architecture, pre-trained on video labels and fine-tuned on segment ratings."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from yt8m_assets.assets.failures import asked_for, stage_errors
from yt8m_assets.assets.results import materializations
from yt8m_assets.assets.shell import ProgressSource, StepTags, asset_options, attempt, run_tags, untagged
from yt8m_assets.partitions import beta_accepted
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import Tracking

FALLBACK_TAG = "yt8m/allow_fallback"
"""Run tag: with the value "true", a damaged newest checkpoint is passed over for the one before it."""

AFRESH_TAG = "yt8m/start_afresh"
"""Run tag: with the value "true", training throws away checkpoints of another configuration instead of refusing."""


@beta_accepted()
def build_model_assets(recipe: Recipe, step_tags: StepTags = untagged) -> list[dg.AssetsDefinition]:
    """The two assets of the models group, partitioned by model."""
    return [
        _trained_model(
            recipe,
            step_tags,
            "pretrained_model",
            "A frame-level model trained on the video labels of the pre-training shards; an interrupted run continues.",
        ),
        _trained_model(
            recipe,
            step_tags,
            "finetuned_model",
            "The pre-trained model after training on segment ratings: the checkpoint with the best hold-out MAP.",
        ),
    ]


def _trained_model(recipe: Recipe, step_tags: StepTags, name: str, description: str) -> dg.AssetsDefinition:
    options = {"description": description, "backfill_policy": dg.BackfillPolicy.multi_run(1)}

    @dg.asset(**asset_options(recipe, step_tags, name, **options))
    def trained_model(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        from yt8m_assets.stages.training import finetune, pretrain

        train = pretrain if name == "pretrained_model" else finetune
        results: dict[str, StageResult] = {}
        shown = progress.open(context.log)
        with stage_errors(context):
            for key in context.partition_keys:
                options: Any = {
                    "run_tags": run_tags(context, key),
                    "allow_fallback": asked_for(context.run, FALLBACK_TAG),
                    "start_afresh": asked_for(context.run, AFRESH_TAG),
                }
                results[key] = train(
                    recipe, attempt(context, recipe, store), key, tracking=tracking, progress=shown, **options
                )
        yield from materializations(context, recipe, store, results)

    return trained_model
