"""Group `predictions`: every segment scored by every model at every shift, and a model's shifts fused by rank."""

from collections.abc import Iterator
from typing import Any, Literal

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.results import materializations, published
from yt8m_assets.assets.shell import GPU_POOL, ProgressSource, StepTags, asset_options, attempt, run_tags, untagged
from yt8m_assets.partitions import (
    backfill_policy,
    beta_accepted,
    by_model,
    cell_key,
    cell_partitions,
    model_partitions,
    parse_cell,
)
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import Tracking

Split = Literal["oof", "test"]
_SEGMENTS = {"oof": "segments of the held-out shards (out of fold)", "test": "segments of the test shards"}
_SHARDS = {"oof": ("segment_shards",), "test": ("test_shards", "segment_shards")}


@beta_accepted()
def build_prediction_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """Predictions by model and shift, and rankings by model, for both splits; `backfill` is a policy's name."""
    splits: tuple[Split, ...] = ("oof", "test")
    return [build(recipe, step_tags, split, backfill) for build in (_predictions, _ranking) for split in splits]


def _options(
    recipe: Recipe, step_tags: StepTags, name: str, kinds: set[str], backfill: str, **options: Any
) -> dict[str, Any]:
    return asset_options(
        recipe, step_tags, name, "predictions", kinds, backfill_policy=backfill_policy(backfill), **options
    )


def _predictions(recipe: Recipe, step_tags: StepTags, split: Split, backfill: str) -> dg.AssetsDefinition:
    description = (
        f"Per-class rankings of the {_SEGMENTS[split]} by one model, with the 5-second window shifted by -2 to +2 "
        "seconds.\n\n"
        "A model's ranking needs only the shifts of its recipe row; the other cells are optional and stay grey until "
        "somebody asks for them.\n\n"
        "One run reads the data once for all of its cells. A backfill of a row or column of neighbours is one run; of "
        "a rectangle, one for each key of its shorter side (all models by five shifts: five). The command "
        "`yt8m predict`, or a run with the tags dagster/asset_partition_range_start and _end, takes a whole rectangle "
        "at once; with YT8M_BACKFILL=per_partition every cell of a backfill gets a run of its own."
    )
    deps = [dg.AssetDep("finetuned_model", partition_mapping=by_model()), *map(dg.AssetDep, _SHARDS[split])]
    options = {"partitions_def": cell_partitions(recipe), "pool": GPU_POOL, "deps": deps, "description": description}

    @dg.asset(**_options(recipe, step_tags, f"{split}_predictions", {"pytorch", "parquet"}, backfill, **options))
    def predictions(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        from yt8m_assets.stages.prediction import predict_cells

        cells = [parse_cell(key) for key in context.partition_keys]
        made: dict[str, StageResult] = {}
        options: Any = {"tracking": tracking, "progress": progress.open(context.log), "run_tags": run_tags(context)}
        options["on_published"] = lambda cell, result: made.update({cell_key(*cell): result})
        try:
            with stage_errors(context):
                predict_cells(recipe, attempt(context, recipe, store), split, cells, **options)
        except dg.Failure:  # of some cells: the others are there
            yield from published(context, recipe, store, made)
            raise
        yield from materializations(context, recipe, store, made)

    return predictions


def _ranking(recipe: Recipe, step_tags: StepTags, split: Split, backfill: str) -> dg.AssetsDefinition:
    description = (
        f"One ranking per class of the {_SEGMENTS[split]}: the shifts of a model's recipe row, fused by rank.\n\n"
        "When a shift outside that row is predicted, Dagster calls the ranking unsynced, because its partition "
        "mappings can only name whole rows of the grid. Materialising it finds it up to date and clears the mark."
    )
    deps = [dg.AssetDep(f"{split}_predictions", partition_mapping=by_model())]
    options = {"partitions_def": model_partitions(recipe), "deps": deps, "description": description}

    @dg.asset(**_options(recipe, step_tags, f"{split}_ranking", {"parquet"}, backfill, **options))
    def ranking(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        progress: dg.ResourceParam[ProgressSource],
    ) -> Iterator[dg.MaterializeResult | dg.AssetMaterialization]:
        from yt8m_assets.stages.ranking import rank_model

        shown = progress.open(context.log)
        with stage_errors(context):
            results = {
                key: rank_model(recipe, attempt(context, recipe, store), split, key, progress=shown)
                for key in context.partition_keys
            }
        yield from materializations(context, recipe, store, results)

    return ranking
