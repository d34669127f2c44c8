"""Group `predictions`: every segment scored by every model at every shift, and a model's shifts fused by rank."""

from typing import Any, Literal

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.shell import GPU_POOL, ProgressSource, asset_options, materialization
from yt8m_assets.partitions import beta_accepted, by_model, cell_partitions, model_partitions, parse_cell
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

Split = Literal["oof", "test"]
_SEGMENTS = {"oof": "segments of the held-out shards (out of fold)", "test": "segments of the test shards"}
_SHARDS = {"oof": "segment_shards", "test": "test_shards"}


@beta_accepted()
def build_prediction_assets(recipe: Recipe) -> list[dg.AssetsDefinition]:
    """Predictions by model and shift, and rankings by model, for both splits."""
    splits: tuple[Split, ...] = ("oof", "test")
    return [build(recipe, split) for build in (_predictions, _ranking) for split in splits]


def _options(name: str, kinds: set[str], **options: Any) -> dict[str, Any]:
    return asset_options(name, "predictions", kinds, backfill_policy=dg.BackfillPolicy.single_run(), **options)


def _predictions(recipe: Recipe, split: Split) -> dg.AssetsDefinition:
    description = (
        f"Per-class rankings of the {_SEGMENTS[split]} by one model, with the 5-second window shifted by -2 to +2 "
        "seconds.\n\n"
        "A model's ranking needs only the shifts of its recipe row; the other cells are optional and stay grey until "
        "somebody asks for them.\n\n"
        "One run takes a contiguous rectangle of the grid (neighbouring models by neighbouring shifts) and reads the "
        "data once; any other selection is split into several runs, each of which reads the data. The job "
        "`predict_rectangle` and the command `yt8m predict` take a rectangle in one run."
    )
    deps = [dg.AssetDep("finetuned_model", partition_mapping=by_model()), dg.AssetDep(_SHARDS[split])]
    options = {"partitions_def": cell_partitions(recipe), "pool": GPU_POOL, "deps": deps, "description": description}

    @dg.asset(**_options(f"{split}_predictions", {"pytorch", "parquet"}, **options))
    def predictions(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        from yt8m_assets.prediction.stages import predict_cells

        keys = list(context.partition_keys)
        cells = [parse_cell(key) for key in keys]
        with stage_errors(context):
            results = predict_cells(recipe, store, split, cells, tracking=tracking, progress=progress.open(context.log))
        return materialization(context, store, dict(zip(keys, results, strict=True)))

    return predictions


def _ranking(recipe: Recipe, split: Split) -> dg.AssetsDefinition:
    description = f"One ranking per class of the {_SEGMENTS[split]}: the shifts of a model, fused by rank."
    deps = [dg.AssetDep(f"{split}_predictions", partition_mapping=by_model())]
    options = {"partitions_def": model_partitions(recipe), "deps": deps, "description": description}

    @dg.asset(**_options(f"{split}_ranking", {"parquet"}, **options))
    def ranking(
        context: dg.AssetExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        progress: dg.ResourceParam[ProgressSource],
    ) -> dg.MaterializeResult:
        from yt8m_assets.prediction.stages import rank_model

        shown = progress.open(context.log)
        with stage_errors(context):
            results = {key: rank_model(recipe, store, split, key, progress=shown) for key in context.partition_keys}
        return materialization(context, store, results)

    return ranking
