"""Dagster's own web server and daemon over a state, asked through GraphQL as the UI asks them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestration.ui import HOST, answers
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 90
TICK_SECONDS = 2
DAEMON = f"""
import dagster._daemon.controller as controller
controller.DEFAULT_DAEMON_INTERVAL_SECONDS = {TICK_SECONDS}
from dagster._daemon.cli import create_dagster_daemon_cli
create_dagster_daemon_cli()(prog_name="dagster-daemon")
"""
"""The daemon's own command line; it looks for backfills every two seconds instead of every thirty."""
LOCATION = "yt8m"
WORKSPACE = f"load_from:\n  - grpc_server: {{{{host: {{host}}, port: {{port}}, location_name: {LOCATION}}}}}\n"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
BACKFILL_ENDED = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}
LAUNCH_BACKFILL = """mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
REEXECUTE_BACKFILL = """mutation ($parent: ReexecutionParams!) {
  reexecutePartitionBackfill(reexecutionParams: $parent) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
CANCEL_BACKFILL = """mutation ($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename
  ... on PythonError { message } } }"""
BACKFILL = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
  status error { message } runs(limit: 50) { id status tags { key value } } } } }"""
LAUNCH_RUN = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { id } } ... on PythonError { message } ... on RunConfigValidationInvalid {
  errors { message } } } }"""
RUN = "query ($id: ID!) { runOrError(runId: $id) { ... on Run { id status tags { key value } } } }"
MESSAGES = """query ($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
  ... on MessageEvent { message } } } } }"""
FAILED = """query ($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) { ... on AssetNode {
  partitionStats { numFailed } } } }"""
SET_POOL = """mutation ($pool: String!, $limit: Int!) { setConcurrencyLimit(concurrencyKey: $pool, limit: $limit) }"""
POOL = """query ($pool: String!) { instance { concurrencyLimit(concurrencyKey: $pool) {
  activeSlotCount pendingStepCount assignedStepCount } } }"""


def wait_for(condition: Callable[[], Any], seconds: float = 90, what: str = "condition") -> Any:
    """The condition's first true value; fails the test after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come true within {seconds} s")


class Dagster:
    """A web server's GraphQL."""

    def __init__(self, port: int) -> None:
        self.url = f"http://{HOST}:{port}"

    def ask(self, query: str, **variables: Any) -> Any:
        """The data of an answer."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)
        assert "errors" not in content, content["errors"]
        return content["data"]

    def _launched(self, query: str, name: str, **variables: Any) -> str:
        answer = self.ask(query, **variables)[name]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def backfill(self, asset: str, cells: Sequence[str], **params: Any) -> str:
        """Launch a backfill of an asset's partitions; its id."""
        values = {"assetSelection": [{"path": [asset]}], "partitionNames": list(cells), **params}
        return self._launched(LAUNCH_BACKFILL, "launchPartitionBackfill", params=values)

    def backfill_all(self, assets: Sequence[str]) -> str:
        """Launch a backfill of all partitions of some assets, as *Materialize all* does; its id."""
        params = {"assetSelection": [{"path": [asset]} for asset in assets], "allPartitions": True}
        return self._launched(LAUNCH_BACKFILL, "launchPartitionBackfill", params=params)

    def again_from_failure(self, backfill_id: str) -> str:
        """Launch what a backfill did not make; the new backfill's id."""
        parent = {"parentRunId": backfill_id, "strategy": "FROM_FAILURE"}
        return self._launched(REEXECUTE_BACKFILL, "reexecutePartitionBackfill", parent=parent)

    def cancel(self, backfill_id: str) -> None:
        """Cancel a backfill."""
        answer = self.ask(CANCEL_BACKFILL, id=backfill_id)["cancelPartitionBackfill"]
        assert answer["__typename"] == "CancelBackfillSuccess", answer

    def state(self, backfill_id: str) -> dict[str, Any]:
        """Status and runs of a backfill; each run's tags as a mapping."""
        found: dict[str, Any] = self.ask(BACKFILL, id=backfill_id)["partitionBackfillOrError"]
        runs = [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found["runs"]]
        return found | {"runs": runs}

    def statuses(self, backfill_id: str) -> list[str]:
        """The status of each of its runs."""
        return [run["status"] for run in self.state(backfill_id)["runs"]]

    def wait(self, backfill_id: str, seconds: float = 120) -> dict[str, Any]:
        """The state of a backfill that has ended."""

        def ended() -> dict[str, Any] | None:
            state = self.state(backfill_id)
            return state if state["status"] in BACKFILL_ENDED else None

        state: dict[str, Any] = wait_for(ended, seconds, f"the end of backfill {backfill_id}")
        return state

    def run(self, job: str, tags: Mapping[str, str], assets: Sequence[str] = ()) -> str:
        """Launch a run of a job, of some of its assets where they are named; its id."""
        selector = {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
            "jobName": job,
            **({"assetSelection": [{"path": [asset]} for asset in assets]} if assets else {}),
        }
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        params = {"selector": selector, "executionMetadata": metadata, "runConfigData": "{}"}
        answer = self.ask(LAUNCH_RUN, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["id"])

    def wait_for_run(self, run_id: str, seconds: float = 90) -> str:
        """The status with which a run ends."""

        def ended() -> str | None:
            status = str(self.ask(RUN, id=run_id)["runOrError"]["status"])
            return status if status in ENDED else None

        return str(wait_for(ended, seconds, f"the end of run {run_id}"))

    def pool(self, name: str) -> dict[str, int]:
        """Slots of a pool: active, and steps that wait for one."""
        found: dict[str, int] = self.ask(POOL, pool=name)["instance"]["concurrencyLimit"]
        return found

    def set_pool_limit(self, name: str, limit: int) -> None:
        """Change how many steps of a pool may run at once."""
        assert self.ask(SET_POOL, pool=name, limit=limit)["setConcurrencyLimit"]

    def failed_partitions(self, asset: str) -> int:
        """How many partitions of an asset the UI shows as failed."""
        return int(self.ask(FAILED, asset={"path": [asset]})["assetNodeOrError"]["partitionStats"]["numFailed"])

    def messages(self, run_id: str) -> str:
        """The messages of a run's log."""
        return "\n".join(event["message"] for event in self.ask(MESSAGES, id=run_id)["logsForRun"]["events"])


@contextmanager
def process(
    command: Sequence[str], environment: Mapping[str, str], log_path: Path, folder: Path = ROOT
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server in a session of its own, ended with its children."""
    with log_path.open("wb") as log:
        server = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield server
    finally:
        for sign, seconds in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
            if server.poll() is None:
                os.killpg(server.pid, sign)
                try:
                    server.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue


@contextmanager
def serve(environment: Mapping[str, str], logs: Path) -> Iterator[Dagster]:
    """A code server, a web server and a daemon, ready to be asked."""
    code_port, web_port = free_port(), free_port()
    python = [sys.executable, "-m"]
    workspace = logs / "workspace.yaml"
    workspace.write_text(WORKSPACE.format(host=HOST, port=code_port))
    code = ["-m", "orchestration.definitions", "--location-name", LOCATION, "--host", HOST, "--port", str(code_port)]
    location = ["-w", str(workspace)]
    with ExitStack() as stack:
        start = lambda name, command: stack.enter_context(process(command, environment, logs / f"{name}.log"))  # noqa: E731
        start("code", [*python, "dagster", "api", "grpc", "--use-python-environment-entry-point", *code])
        wait_for(lambda: listens(code_port), START_SECONDS, "the code server")
        start("web", [*python, "dagster_webserver", "-h", HOST, "-p", str(web_port), *location])
        start("daemon", [sys.executable, "-c", DAEMON, "run", *location])
        dagster = Dagster(web_port)
        wait_for(lambda: answers(dagster.url), START_SECONDS, "the web server")
        yield dagster


def listens(port: int) -> bool:
    """Whether something listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0
