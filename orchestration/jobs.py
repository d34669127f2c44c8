"""Jobs: the parts of the graph that share partitions and are worth a name, each with a limit on its run time."""

from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from yt8m_assets.assets.shell import ProgressSource
from yt8m_assets.assets.study import STUDY
from yt8m_assets.assets.variants import VARIANT
from yt8m_assets.partitions import keys_of
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, OPTIONAL_GROUP
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

HOUR = 3600
JOBS: Mapping[tuple[str, tuple[str, ...]], tuple[str, int, str]] = {
    ("data", ()): ("prepare_data", 12 * HOUR, "List (or simulate) the shards and extract the hold-out ratings."),
    ("models", ("model",)): (
        "train_one_model",
        7 * 24 * HOUR,
        "Pre-train and fine-tune the chosen model; with the tags "
        "dagster/asset_partition_range_start and _end all models between, which read the data once.",
    ),
    ("refit", ("model",)): (
        "refit_models",
        7 * 24 * HOUR,
        "Fine-tune the chosen model once more, on all rated segments, as long as was best on the split.",
    ),
    ("folds", ("model",)): (
        "train_folds",
        7 * 24 * HOUR,
        "Fine-tune the chosen model once without each fold of the rated videos, and rank what it has not seen.",
    ),
    ("predictions", ("model", "shift")): (
        "predict_cells",
        48 * HOUR,
        "Score both splits for the chosen models and shifts. With the tags dagster/asset_partition_range_start and "
        "_end (as bert_l2h12|-1 and bert_l3h12|1) one run takes all cells between and reads the data once.",
    ),
    (OPTIONAL_GROUP, ("model", "shift")): (
        "predict_optional_cells",
        48 * HOUR,
        "Score both splits for models and shifts that no ranking fuses: to try a wider augmentation.",
    ),
    ("predictions", ("model",)): (
        "rank_models",
        12 * HOUR,
        "Fuse the shifts of the chosen model into one ranking a split.",
    ),
    ("ensemble", ()): ("ensemble", 12 * HOUR, "Search the weights, write the submission and the report."),
}
"""Heading and axes of assets -> their job: its name, the seconds after which a run ends (a worker may die unseen)."""
ON_REQUEST: Mapping[str, tuple[tuple[str, ...], int, str]] = {
    "train_variant": (
        (VARIANT,),
        7 * 24 * HOUR,
        "Train the chosen model with other settings, which the config says, beside the recipe's own.",
    ),
    "study_model": (
        (STUDY,),
        14 * 24 * HOUR,
        "Try settings of the chosen model, as many as the config's budget of steps allows.",
    ),
}
"""Job -> its assets, seconds and description, of what a person asks for with a form and nothing else makes."""
ABLATION_SECONDS = 12 * HOUR


def jobs() -> dict[str, tuple[tuple[str, ...], int, str]]:
    """Job -> its assets, which share heading and partitions, its seconds and its description."""
    parts: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, asset in ASSETS.items():
        parts.setdefault((asset.group, asset.axes), []).append(name)
        if asset.optional:
            parts.setdefault((OPTIONAL_GROUP, asset.axes), []).append(asset.optional)
    found = {}
    for part, assets in parts.items():
        name, seconds, text = JOBS.get(part, (f"make_{assets[0]}", 12 * HOUR, f"Make {', '.join(assets)}."))
        found[name] = (tuple(assets), seconds, text)
    return found


def job_of(assets: Collection[str]) -> str:
    """The job that makes some assets which share partitions."""
    return next(name for name, (selection, _, _) in {**jobs(), **ON_REQUEST}.items() if set(assets) <= set(selection))


def build_asset_jobs(recipe: Recipe) -> list[Any]:
    """The jobs of JOBS; their partitions are those of their assets."""
    return [
        dg.define_asset_job(
            name,
            selection=dg.AssetSelection.assets(*assets),
            description=description,
            tags={"dagster/max_runtime": str(seconds)},
        )
        for name, (assets, seconds, description) in {**jobs(), **ON_REQUEST}.items()
        if name in ON_REQUEST
        or all(keys_of(recipe, asset) != [] for asset in assets)  # a recipe may have no optional cells
    ]


def ablation_job(recipe: Recipe, step_tags: Mapping[str, Any]) -> dg.JobDefinition:
    """The job that says what each switch is worth; it makes no asset: its table is its output."""

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
        tags={"dagster/max_runtime": str(ABLATION_SECONDS)},
    )
    def ablation() -> None:
        compare_switches()

    return ablation
