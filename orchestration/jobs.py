"""Jobs: the parts of the graph that share partitions and are worth a name, each with a limit on its run time."""

from typing import Any

import dagster as dg

HOUR = 3600
MAX_RUNTIME_SECONDS = {
    "prepare_data": 12 * HOUR,
    "train_one_model": 7 * 24 * HOUR,
    "predict_rectangle": 48 * HOUR,
    "rank_models": 12 * HOUR,
    "ensemble": 12 * HOUR,
}
"""A worker that dies unseen ends its run after this long."""


def build_jobs() -> list[Any]:
    """The jobs; their partitions are those of their assets."""
    return [
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
    ]  # fmt: skip


def _job(name: str, assets: list[str], description: str) -> Any:
    tags = {"dagster/max_runtime": str(MAX_RUNTIME_SECONDS[name])}
    selection = dg.AssetSelection.assets(*assets)
    return dg.define_asset_job(name, selection=selection, description=description, tags=tags)
