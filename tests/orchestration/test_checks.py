"""Verdicts of the checks: one a partition, each check executable alone, and nothing built on what failed."""

from collections.abc import Mapping

import dagster as dg
import pytest

from orchestration.driver import QUIET, RANGE_END, RANGE_START, Driver
from orchestration.plan import Step
from tests.orchestration.conftest import Graph, report_verdict
from yt8m_assets.errors import ParentCheckError
from yt8m_assets.partitions import node_of
from yt8m_assets.stages.nodes import ASSETS, Node, nodes

PARTITION = "dagster/partition"
Run = dg.ExecuteInProcessResult


def verdicts(driver: Driver, asset: str, name: str) -> dict[Node, str]:
    """The newest verdict on every partition."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    found = driver.instance.event_log_storage.get_asset_check_partition_info([key])
    return {node_of(asset, info.partition_key): info.latest_execution_status.value for info in found}


def check_alone(driver: Driver, asset: str, name: str, tags: Mapping[str, str] | None = None) -> Run:
    """A run of nothing but one check, of the partitions that the tags name as those of a launch from the page do."""
    key = dg.AssetCheckKey(dg.AssetKey(asset), name)
    job = driver.definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection={key}
    )
    return job.execute_in_process(instance=driver.instance, tags=tags, run_config=QUIET, raise_on_error=False)


def test_a_pass_leaves_a_verdict_on_every_partition(graph: Graph) -> None:
    with graph.open() as driver:
        for asset in (name for name in ASSETS if nodes(graph.recipe, name)):
            for name in ASSETS[asset].checks:
                found = verdicts(driver, asset, name)
                assert set(nodes(graph.recipe, asset)) <= set(found), (asset, name)
                assert set(found.values()) == {"SUCCEEDED"}
        definitions = driver.definitions.resolve_asset_graph()
        for key in definitions.asset_check_keys:
            assert definitions.get(key).partitions_def == definitions.get(key.asset_key).partitions_def


@pytest.mark.parametrize(
    ("asset", "name"), [(asset, name) for asset in ("finetuned_model", "oof_ranking") for name in ASSETS[asset].checks]
)
def test_a_check_runs_alone(own_graph: Graph, asset: str, name: str) -> None:
    """Of one partition, of several, and of all that the recipe needs, as the page asks for it."""
    with own_graph.open() as driver:
        for options in ({PARTITION: "two"}, {RANGE_START: "one", RANGE_END: "two"}, {}):
            result = check_alone(driver, asset, name, options)
            assert result.success
            seen = [evaluation.partition for evaluation in result.get_asset_check_evaluations()]
            expected = ["two"] if PARTITION in options else ["one", "two"]
            assert [partition for partition in seen if partition is not None] == expected
            targets = [item.target_materialization_data for item in result.get_asset_check_evaluations()]
            assert all(target for target, partition in zip(targets, seen, strict=True) if partition)
        assert not driver.materialize().runs


def test_a_check_of_cells_runs_alone(own_graph: Graph) -> None:
    with own_graph.open() as driver:
        assert check_alone(driver, "oof_predictions", "coverage").success
        own_graph.store.delete("oof_predictions/one/shift+0")
        assert not check_alone(driver, "oof_predictions", "coverage", {PARTITION: "one|0"}).success
        found = verdicts(driver, "oof_predictions", "coverage")
        assert {node for node, status in found.items() if status != "SUCCEEDED"} == {Node("oof_predictions", "one", 0)}
        assert driver.records.unproven(driver._blocking_checks()) == {Node("oof_predictions", "one", 0)}


def test_nothing_is_built_on_what_failed_its_check_until_it_is_good(own_graph: Graph) -> None:
    """RELIABILITY F28-like: a good verdict on another partition does not make up for it."""
    bad = Node("oof_ranking", "one")
    with own_graph.open() as driver:
        report_verdict(driver.instance, bad, "coverage", passed=False)
        driver.run(Step(assets=("oof_ranking",), first="two", last="two"))
        for asset in ("ensemble_weights", "leaderboard"):
            with pytest.raises(ParentCheckError, match="oof_ranking/one: coverage: found wanting"):
                driver.run(Step(assets=(asset,)))
        driver.run(Step(assets=("submission",)))  # comes from the test rankings
        assert check_alone(driver, bad.asset, "coverage", {PARTITION: "one"}).success
        driver.run(Step(assets=("ensemble_weights",)))
        other = Node("test_ranking", "two")
        report_verdict(driver.instance, other, "coverage", passed=False)
        driver.materialize()  # makes it again, and with it the verdict
        assert verdicts(driver, other.asset, "coverage")[other] == "SUCCEEDED"
        assert not driver.materialize().runs
