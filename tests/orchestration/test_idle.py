"""Which runs have nothing to compute, and where those run."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from orchestration.definitions import build_definitions
from orchestration.driver import Driver
from orchestration.idle import RANGE_END, RANGE_START, _FrugalExecutor, nodes_of_run
from tests.orchestration.conftest import Graph
from tests.tiny import tiny_recipe
from yt8m_assets.assets.shell import FORCE_TAG
from yt8m_assets.errors import TransientError
from yt8m_assets.stages.nodes import Node
from yt8m_assets.tracking import NullTracking

PARTITION = "dagster/partition"


class Named:
    """An executor that yields its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[str]:
        yield self.name


def where(driver: Driver, job: dg.JobDefinition, **tags: str) -> str:
    """Which executor a run of a job would take."""
    executor: Any = _FrugalExecutor(Named("busy"), Named("idle"), driver.recipe, driver.store)  # type: ignore[arg-type]
    run = dg.DagsterRun(job.name, tags=tags)
    (name,) = executor.execute(SimpleNamespace(job=SimpleNamespace(get_definition=lambda: job), dagster_run=run), None)
    return str(name)


def test_a_run_that_makes_nothing_is_idle(own_graph: Graph) -> None:
    own_graph.store.delete("oof_ranking/two")
    with own_graph.open() as driver:
        ranking = driver.definitions.resolve_job_def("rank_models")
        assert where(driver, ranking, **{PARTITION: "one"}) == "idle"
        assert where(driver, ranking, **{PARTITION: "two"}) == "busy"
        assert where(driver, ranking, **{PARTITION: "one", FORCE_TAG: "true"}) == "busy"
        assert where(driver, ranking, **{RANGE_START: "one", RANGE_END: "one"}) == "idle"
        assert where(driver, ranking, **{RANGE_START: "one", RANGE_END: "two"}) == "busy"
        assert where(driver, driver.definitions.resolve_job_def("prepare_data")) == "idle"
        assert where(driver, driver.definitions.resolve_job_def("ensemble")) == "busy"  # its parent is missing
        cells = driver.definitions.resolve_job_def("predict_optional_cells")
        assert where(driver, cells, **{PARTITION: "one|-2"}) == "busy"


def test_a_store_that_cannot_be_asked_is_left_to_the_step(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise TransientError("the bucket does not answer")

    with graph.open() as driver:
        data = driver.definitions.resolve_job_def("prepare_data")
        monkeypatch.setattr(driver.store, "find", unreachable)
        assert where(driver, data) == "busy"


def test_checks_alone_are_idle_and_other_jobs_are_not(graph: Graph) -> None:
    resources = {"store": graph.store, "tracking": NullTracking(), "progress": None}
    whole = build_definitions(graph.recipe, resources)
    with graph.open() as driver:
        key = dg.AssetCheckKey(dg.AssetKey("submission"), "valid")
        every = driver.definitions.resolve_implicit_global_asset_job_def()
        assert where(driver, every.get_subset(asset_selection=set(), asset_check_selection={key})) == "idle"
        for name in ("ablate", "doctor", "bring_up_to_date"):
            assert where(driver, whole.resolve_job_def(name)) == "busy"


@pytest.mark.parametrize(
    ("tags", "nodes"),
    [
        ({PARTITION: "two|0"}, [("two", 0)]),
        ({RANGE_START: "one|1", RANGE_END: "two|0"}, [("one", 1), ("two", -1), ("two", 0)]),
        ({}, [("one", 0), ("one", 1), ("two", -1), ("two", 0), ("two", 1)]),
    ],
)
def test_tags_name_the_nodes_of_a_run(tags: dict[str, str], nodes: list[tuple[str, int]]) -> None:
    expected = [Node("oof_predictions", *node) for node in nodes]
    assert nodes_of_run(tiny_recipe(), "oof_predictions", tags) == expected
