"""How long pages take: the questions that Dagster's and MLflow's pages ask, and `yt8m status`."""

import json
import statistics
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.soak.filling import long_run
from tests.soak.work import Servers, yt8m

REPEATS = 5
RUNS = """{ runsFeedOrError(limit: 30, view: ROOTS) { __typename ... on RunsFeedConnection { cursor hasMore results {
  id runStatus creationTime startTime endTime jobName tags { key value } } } }
  runsFeedCountOrError(view: ROOTS) { ... on RunsFeedCount { count } } }"""
FAILED = """{ runsOrError(filter: {statuses: [FAILURE], pipelineName: "ensemble"}, limit: 30) { ... on Runs {
  count results { id status startTime endTime tags { key value } } } } }"""
CATALOG = """{ assetNodes { id assetKey { path } groupName partitionStats { numMaterialized numPartitions numFailed }
  assetMaterializations(limit: 1) { timestamp runId } } }"""
ASSET = """{ assetNodeOrError(assetKey: {path: ["finetuned_model"]}) { ... on AssetNode {
  partitionStats { numMaterialized }
  assetMaterializations(limit: 100) { timestamp partition metadataEntries { label } } } } }"""
LOG = """query ($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { hasMore
  events { __typename ... on MessageEvent { message timestamp } } } } }"""


def _mlflow(servers: Servers, path: str, values: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{servers.mlflow}/api/2.0/mlflow/{path}", json.dumps(values).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def measure(servers: Servers, state: Path) -> dict[str, list[float]]:
    """Page -> seconds of each of some requests, after one that does not count."""
    ordered = {"experiment_ids": ["1"], "max_results": 100, "order_by": ["metrics.`holdout/map_at_100000` DESC"]}
    filtered = {**ordered, "filter": "tags.model = 'mix' and metrics.`holdout/map_at_100000` > 0.5"}
    ask = servers.dagster.ask
    pages: dict[str, Callable[[], Any]] = {
        "Dagster: runs": lambda: ask(RUNS),
        "Dagster: failed runs of a job": lambda: ask(FAILED),
        "Dagster: assets with the state of their partitions": lambda: ask(CATALOG),
        "Dagster: an asset's last 100 materialisations": lambda: ask(ASSET),
        "Dagster: 1000 lines of a run's log": lambda: ask(LOG, id=long_run()),
        "MLflow: runs, newest first": lambda: _mlflow(
            servers, "runs/search", {**ordered, "order_by": ["attributes.start_time DESC"]}
        ),
        "MLflow: runs, best first": lambda: _mlflow(servers, "runs/search", ordered),
        "MLflow: runs, filtered": lambda: _mlflow(servers, "runs/search", filtered),
        "yt8m status": lambda: yt8m(state, "status"),
    }
    found: dict[str, list[float]] = {}
    for name, page in pages.items():
        assert page() != {}, name
        found[name] = []
        for _ in range(REPEATS):
            started = time.monotonic()
            page()
            found[name].append(time.monotonic() - started)
    return found


def table(found: Mapping[str, list[float]]) -> str:
    """Median and slowest of each page."""
    lines = [f"| {name} | {statistics.median(each):.2f} s | {max(each):.2f} s |" for name, each in found.items()]
    return "\n".join(["| page | median | slowest of five |", "| --- | ---: | ---: |", *lines])
