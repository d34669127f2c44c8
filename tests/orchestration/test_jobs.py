"""The jobs that are no selection of assets - the ablation, and what brings all up to date -, as Dagster runs them."""

import dagster as dg

from orchestration.definitions import build_definitions
from orchestration.driver import QUIET
from orchestration.plan import required_nodes
from orchestration.resources import FixedProgress
from tests.memory_tracking import MemoryTracking
from tests.orchestration.conftest import Graph
from yt8m_assets.progress import NullProgress
from yt8m_assets.tracking import NullTracking


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


def test_a_job_of_the_page_brings_everything_up_to_date(own_graph: Graph) -> None:
    """What `yt8m materialize` does; and again, nothing. What Dagster alone had forgotten is not counted as made."""
    own_graph.store.delete("test_ranking/two")
    own_graph.store.delete("submission")
    with own_graph.open() as driver:
        driver.instance.wipe_assets([dg.AssetKey("oof_ranking")])
        resources = {"store": driver.store, "tracking": NullTracking(), "progress": FixedProgress(NullProgress())}
        job = build_definitions(own_graph.recipe, resources).resolve_job_def("bring_up_to_date")
        outputs = []
        for _ in range(2):
            result = job.execute_in_process(instance=driver.instance, run_config=QUIET)
            assert result.success
            (event,) = [event for event in result.all_events if event.is_successful_output]
            outputs.append({name: value.value for name, value in event.step_output_data.metadata.items()})
        driver.lineage.forget()
        assert all(driver.up_to_date(node) for node in required_nodes(own_graph.recipe))
        runs = outputs[0]["runs"]
        assert isinstance(runs, list)
        assert {run.status for run in driver.instance.get_runs(dg.RunsFilter(run_ids=runs))} == {
            dg.DagsterRunStatus.SUCCESS
        }
    num_nodes = len(required_nodes(own_graph.recipe))
    assert [outputs[0][name] for name in ("made", "found", "up_to_date")] == [2, 3, num_nodes - 5]
    assert [outputs[1][name] for name in ("made", "found", "up_to_date", "runs")] == [0, 0, num_nodes, []]
