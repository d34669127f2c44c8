"""The job that makes no asset: the ablation, as Dagster runs it."""

import dagster as dg

from orchestration.definitions import build_definitions
from orchestration.resources import FixedProgress
from tests.orchestration.conftest import Graph
from yt8m_assets.progress import NullProgress
from yt8m_assets.tracking import MemoryTracking


def test_the_ablation_job_shows_its_table(graph: Graph) -> None:
    tracking = MemoryTracking()
    resources = {"store": graph.store, "tracking": tracking, "progress": FixedProgress(NullProgress())}
    resolved = build_definitions(graph.recipe, resources, "in_process")
    with dg.DagsterInstance.ephemeral() as instance:
        result = resolved.resolve_job_def("ablate").execute_in_process(instance=instance)
    assert result.success
    (event,) = [event for event in result.all_events if event.is_successful_output]
    table = str(event.step_output_data.metadata["table"].value)
    assert "| switch | setting | MAP |" in table
    assert "shifts: one" in table
    (run,) = tracking.runs
    assert run.tags["dagster_run_id"] == result.run_id
    assert run.dicts["ablation.json"]["recipe"] == "tiny"
