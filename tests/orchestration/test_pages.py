"""What a page asks of Dagster's own web server over the finished graph, through the same GraphQL."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestration.instance import LISTED, driver_instance
from tests.orchestration.conftest import Graph, report_verdict
from tests.orchestration.servers import LAUNCH_RUN, LOCATION, ROOT, Dagster, serve
from tests.orchestration.test_processes import UI_RECIPE
from yt8m_assets.stages.nodes import Node

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]
SELECTOR = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": "__ASSET_JOB"}
RUNS = """query ($tags: [ExecutionTag!]) { runsOrError(filter: {tags: $tags}) { ... on Runs { results {
  id status pipelineName hasReExecutePermission repositoryOrigin { repositoryName repositoryLocationName }
  tags { key value } } } } }"""
AGAIN = """mutation ($parent: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $parent) { __typename
  ... on LaunchRunSuccess { run { id } } ... on PythonError { message stack } } }"""
VERDICTS = """query ($asset: AssetKeyInput!, $name: String!, $partition: String) {
  assetCheckExecutions(assetKey: $asset, checkName: $name, limit: 1, partition: $partition) { status partition } }"""


@pytest.fixture
def dagster(own_graph: Graph, tmp_path: Path) -> Iterator[Dagster]:
    """A web server and daemon over a copy of the finished graph."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(UI_RECIPE)
    own = {"DAGSTER_HOME": own_graph.state.dagster_home, "YT8M_STATE": own_graph.state.root, "YT8M_RECIPE": recipe}
    environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
    environment |= {"YT8M_EXECUTOR": "in_process", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with serve(environment, tmp_path) as found:
        yield found


def execute_check(dagster: Dagster, asset: str, name: str, tags: Mapping[str, str]) -> str:
    """What *Execute* of one check on the page of an asset launches; the status in which it ends."""
    check = {"assetKey": {"path": [asset]}, "name": name}
    selector = {**SELECTOR, "assetSelection": [], "assetCheckSelection": [check]}
    metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
    params = {"selector": selector, "executionMetadata": metadata, "runConfigData": "{}"}
    answer = dagster.ask(LAUNCH_RUN, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return dagster.wait_for_run(str(answer["run"]["id"]), 180)


def test_the_pages_over_a_finished_graph(graph: Graph, own_graph: Graph, dagster: Dagster) -> None:
    for asset, name, tags in [
        ("oof_predictions", "coverage", {"dagster/partition": "one|0"}),
        ("oof_ranking", "coverage", {}),
        ("submission", "valid", {}),
    ]:
        assert execute_check(dagster, asset, name, tags) == "SUCCESS", asset
    found = dagster.ask(VERDICTS, asset={"path": ["oof_predictions"]}, name="coverage", partition="one|0")
    assert found["assetCheckExecutions"] == [{"status": "SUCCEEDED", "partition": "one|0"}]
    first: list[dict[str, Any]] = dagster.ask(RUNS, tags=[{"key": k, "value": v} for k, v in LISTED.items()])[
        "runsOrError"
    ]["results"]
    made = [run for run in first if any(tag["key"] == "yt8m/recipe" for tag in run["tags"])]
    assert graph.first is not None
    assert {run["id"] for run in made} >= set(graph.first.runs)
    origin = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION}
    assert {str(run["repositoryOrigin"]) for run in made} == {str(origin)}
    assert not any(tag["key"] == "yt8m/start_afresh" for run in made for tag in run["tags"])
    answer = dagster.ask(AGAIN, parent={"parentRunId": made[0]["id"], "strategy": "ALL_STEPS"})["launchRunReexecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    assert dagster.wait_for_run(str(answer["run"]["id"]), 180) == "SUCCESS"
    with driver_instance(own_graph.state) as instance:
        report_verdict(instance, Node("oof_ranking", "one"), "coverage", passed=False)
    refused = dagster.run("__ASSET_JOB", {}, ["ensemble_weights"])
    assert dagster.wait_for_run(refused, 180) == "FAILURE"
    with driver_instance(own_graph.state) as instance:
        logged = "".join(str(entry) for entry in instance.all_logs(refused))
    assert "oof_ranking/one: coverage: found wanting" in logged


def test_a_backfill_over_what_failed_its_check_builds_nothing_downstream(own_graph: Graph, dagster: Dagster) -> None:
    """Of several assets at once; a good verdict on another partition does not make up for the bad one."""
    below = [Node("oof_ranking", "one"), Node("oof_ranking", "two"), Node("ensemble_weights"), Node("leaderboard")]
    for node in below:
        own_graph.store.delete(node.key)
    with driver_instance(own_graph.state) as instance:
        report_verdict(instance, Node("oof_predictions", "one", 0), "coverage", passed=False)
        report_verdict(instance, Node("oof_predictions", "two", 0), "coverage", passed=True)
    state = dagster.wait(dagster.backfill_all(("oof_ranking", "ensemble_weights", "leaderboard")), 240)
    assert state["status"] == "COMPLETED_FAILED"
    assert [own_graph.store.manifest(node.key) for node in below] == [None] * len(below)
    (refused,) = state["runs"]
    with driver_instance(own_graph.state) as instance:
        logged = "".join(str(entry) for entry in instance.all_logs(refused["id"]))
    assert "oof_predictions/one/shift+0: coverage: found wanting" in logged
