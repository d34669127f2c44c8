"""Jobs: the parts of the graph that share partitions and are worth a name, each with a limit on its run time."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from orchestration.catch_up import catch_up_job
from orchestration.doctor import doctor_job
from yt8m_assets.assets.shell import ProgressSource, StepTags, untagged
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

HOUR = 3600
MAX_RUNTIME_SECONDS = {
    "prepare_data": 12 * HOUR,
    "train_one_model": 7 * 24 * HOUR,
    "predict_rectangle": 48 * HOUR,
    "rank_models": 12 * HOUR,
    "ensemble": 12 * HOUR,
    "ablate": 12 * HOUR,
}
"""A worker that dies unseen ends its run after this long."""


def build_jobs(recipe: Recipe, tags: StepTags = untagged) -> list[Any]:
    """The jobs; their partitions are those of their assets. `ablate` makes no asset: its table is its output.

    `tags` gives the op tags of a step that is no asset: `ablate`, and `doctor` and
    `bring_up_to_date`, which run where a GPU step would.
    """
    return [
        catch_up_job(recipe, tags("finetuned_model")),
        _job("prepare_data", ["pretraining_shards", "segment_shards", "test_shards", "holdout_ratings"],
             "List (or simulate) the shards and extract the hold-out ratings."),
        _job("train_one_model", ["pretrained_model", "finetuned_model"],
             "Pre-train and fine-tune the chosen model."),
        _job("predict_rectangle", ["oof_predictions", "test_predictions"],
             "Score both splits for the chosen models and shifts. With the tags dagster/asset_partition_range_start "
             "and _end (as bert_l2h12|-1 and bert_l3h12|1) one run takes the rectangle and reads the data once."),
        _job("rank_models", ["oof_ranking", "test_ranking"],
             "Fuse the shifts of the chosen model into one ranking a split."),
        _job("ensemble", ["ensemble_weights", "submission", "leaderboard"],
             "Search the weights, write the submission and the report."),
        _ablation_job(recipe, tags("ablate")),
        doctor_job(recipe, tags("finetuned_model")),
    ]  # fmt: skip


def _ablation_job(recipe: Recipe, step_tags: Mapping[str, Any]) -> dg.JobDefinition:
    @dg.op(
        out=dg.Out(dg.Nothing),
        description="Compare the settings of every switch on the out-of-fold rankings.",
        tags=step_tags,
    )
    def compare_switches(
        context: dg.OpExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> None:
        from yt8m_assets.reports.ablation import ablate
        from yt8m_assets.reports.ablation_table import markdown_table

        tags, shown = {"dagster_run_id": context.run_id}, progress.open(context.log)
        figures = ablate(recipe, store, tracking=tracking, progress=shown, run_tags=tags)
        metadata: dict[str, Any] = {"table": dg.MetadataValue.md(markdown_table(figures))}
        if "mlflow_url" in figures:
            metadata["mlflow_url"] = dg.MetadataValue.url(figures["mlflow_url"])
        context.add_output_metadata(metadata)

    @dg.job(
        name="ablate",
        description="What each switch (shifts, trimming, candidates, fusion, weights, loss) is worth, with intervals.",
        tags={"dagster/max_runtime": str(MAX_RUNTIME_SECONDS["ablate"])},
    )
    def ablation() -> None:
        compare_switches()

    return ablation


def _job(name: str, assets: list[str], description: str) -> Any:
    tags = {"dagster/max_runtime": str(MAX_RUNTIME_SECONDS[name])}
    selection = dg.AssetSelection.assets(*assets)
    return dg.define_asset_job(name, selection=selection, description=description, tags=tags)
