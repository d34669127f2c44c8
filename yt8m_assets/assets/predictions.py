"""Group `predictions`: every segment scored by every model at every shift, and a model's shifts fused by rank."""

from collections.abc import Iterator
from typing import Any, Literal

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.results import materializations, published
from yt8m_assets.assets.shell import ProgressSource, StepTags, asset_options, attempt, run_tags, untagged
from yt8m_assets.partitions import (
    CELLS_A_RUN,
    OPTIONAL,
    backfill_policy,
    beta_accepted,
    cell_key,
    keys_of,
    parse_cell,
)
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import Tracking

Split = Literal["oof", "test"]
_SEGMENTS = {"oof": "segments of the held-out shards (out of fold)", "test": "segments of the test shards"}


@beta_accepted()
def build_prediction_assets(
    recipe: Recipe, backfill: str = "single_run", step_tags: StepTags = untagged
) -> list[dg.AssetsDefinition]:
    """Predictions by model and shift, and rankings by model, for both splits; `backfill` is a policy's name."""
    splits: tuple[Split, ...] = ("oof", "test")

    def options(name: str, **more: Any) -> dict[str, Any]:
        return asset_options(recipe, step_tags, name, **more)

    assets = []
    for split in splits:
        for name in (_cells(split), OPTIONAL[_cells(split)]):
            if keys := keys_of(recipe, name):  # a recipe may fuse every shift
                policy, text = backfill_policy(backfill, len(keys)), _description(split, name)
                assets.append(_predictions(recipe, split, options(name, backfill_policy=policy, description=text)))
    rankings = backfill_policy(backfill)
    return assets + [_ranking(recipe, split, options(f"{split}_ranking", backfill_policy=rankings)) for split in splits]


def _cells(split: Split) -> str:
    return f"{split}_predictions"


def _description(split: Split, name: str) -> str:
    what = (
        f"Per-class rankings of the {_SEGMENTS[split]} by one model, with the 5-second window shifted by some seconds: "
        f"every shift that the model's ranking fuses. Other shifts are in {OPTIONAL[_cells(split)]}."
        if name == _cells(split)
        else f"The {_SEGMENTS[split]} at the shifts of -2 to +2 seconds that no ranking fuses: for trying a wider "
        "augmentation in the ablation. Nothing else is made from them, so none is needed."
    )
    return (
        f"{what}\n\nOne run reads the data once for all of its cells. A backfill of neighbours in the list takes runs "
        f"of up to {CELLS_A_RUN} cells; with YT8M_BACKFILL=per_partition every cell gets a run of its own."
    )


def _predictions(recipe: Recipe, split: Split, declared: dict[str, Any]) -> dg.AssetsDefinition:
    @dg.asset(**declared)
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


def _ranking(recipe: Recipe, split: Split, declared: dict[str, Any]) -> dg.AssetsDefinition:
    description = f"One ranking per class of the {_SEGMENTS[split]}: the shifts of a model's recipe row, fused by rank."

    @dg.asset(description=description, **declared)
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
