"""The job that does from the page what `yt8m materialize` does: everything the recipe needs, in order."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from yt8m_assets.assets.failures import stage_errors
from yt8m_assets.assets.shell import ProgressSource
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import Tracking

DAY = 24 * 3600


def catch_up_job(recipe: Recipe, step_tags: Mapping[str, Any], backfill: str = "single_run") -> dg.JobDefinition:
    """The job; `step_tags` are those of a step that trains, for its runs are made in its own process."""

    @dg.op(
        out=dg.Out(dg.Nothing),
        description="Make what is missing or out of date, each part in a run of its own; leave the rest alone.",
        tags=step_tags,
    )
    def make_what_is_due(
        context: dg.OpExecutionContext,
        store: dg.ResourceParam[ArtifactStore],
        tracking: dg.ResourceParam[Tracking],
        progress: dg.ResourceParam[ProgressSource],
    ) -> None:
        from orchestration.driver import Driver

        driver = Driver(recipe, store, tracking, context.instance, progress.open(context.log), backfill)
        with stage_errors(context):
            outcome = driver.materialize()
        counts = {"made": outcome.num_made, "found": outcome.num_found, "up_to_date": outcome.num_current}
        context.add_output_metadata({**counts, "runs": list(outcome.runs)})

    @dg.job(
        name="bring_up_to_date",
        description="Bring the recipe's whole graph up to date, in order, as `yt8m materialize` does: trains what is "
        "missing too. What is up to date is left alone; a second run ends in seconds.",
        tags={"dagster/max_runtime": str(14 * DAY)},
    )
    def bring_up_to_date() -> None:
        make_what_is_due()

    return bring_up_to_date
