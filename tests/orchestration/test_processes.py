"""What only shows with real processes: killed steps under Dagster's executor, two passes at once, the servers."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import psutil
import pytest

from orchestration.instance import driver_instance
from orchestration.plan import required_nodes
from orchestration.ui import HOST, answers
from tests.orchestration.conftest import Graph
from tests.orchestration.servers import Dagster
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
RECIPE = """
import multiprocessing, os, pathlib, signal, sys, threading, time
sys.path.insert(0, {root!r})
from tests.tiny import tiny_recipe
RECIPE = tiny_recipe()
marker = pathlib.Path({marker!r})

def die_at_checkpoint():
    "Kills this step process, once, when it has saved a checkpoint."
    while not list(pathlib.Path({checkpoints!r}).glob("step-*/manifest-*.json")):
        time.sleep(0.01)
    marker.unlink()
    os.kill(os.getpid(), signal.SIGKILL)

if marker.exists() and multiprocessing.parent_process() is not None:
    threading.Thread(target=die_at_checkpoint, daemon=True).start()
"""


def environment(graph: Graph, recipe: Path, **values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    own = {"YT8M_STATE": str(graph.state.root), "YT8M_RECIPE": str(recipe), "OMP_NUM_THREADS": "1"}
    return {**kept, **own, **values}


@pytest.mark.processes
def test_a_killed_step_is_tried_again_and_goes_on_from_its_checkpoint(own_graph: Graph, tmp_path: Path) -> None:
    """RELIABILITY F32, with Dagster's multiprocess executor and a real SIGKILL."""
    own_graph.store.delete("finetuned_model/two")
    shutil.rmtree(own_graph.state.artifacts / "checkpoints", ignore_errors=True)
    marker = tmp_path / "kill"
    marker.touch()
    recipe = tmp_path / "recipe.py"
    folder = own_graph.state.artifacts / "checkpoints" / "finetuned_model" / "two"
    recipe.write_text(RECIPE.format(root=str(ROOT), marker=str(marker), checkpoints=str(folder)))
    tags = json.dumps({"dagster/partition": "two"})
    command = [
        sys.executable,
        "-m",
        "dagster",
        "job",
        "execute",
        "-m",
        "orchestration.definitions",
        "-j",
        "train_one_model",
    ]
    result = subprocess.run(
        [*command, "--tags", tags],
        cwd=ROOT,
        env=environment(
            own_graph, recipe, YT8M_EXECUTOR="multiprocess", DAGSTER_HOME=str(own_graph.state.dagster_home)
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not marker.exists(), result.stderr[-3000:]
    assert result.returncode == 0, result.stderr[-3000:]
    with driver_instance(own_graph.state) as instance:
        run = instance.get_runs(limit=1)[0]
        assert run.status == dg.DagsterRunStatus.SUCCESS
        events = [entry.dagster_event_type for entry in instance.all_logs(run.run_id)]
        assert dg.DagsterEventType.STEP_UP_FOR_RETRY in events
        assert dg.DagsterEventType.STEP_RESTARTED in events
    assert own_graph.store.require("finetuned_model/two").metadata["resumed_from_step"] in (
        1,
        2,
    )  # a checkpoint a step; the kill follows the first that is seen


@pytest.mark.slow
def test_two_passes_at_once_end_with_one_whole_result(own_graph: Graph, tmp_path: Path) -> None:
    """RELIABILITY F30, through Dagster: both end well, and every artifact is whole and current."""
    for key in ("oof_predictions/one/shift+0", "oof_predictions/two/shift-1", "oof_ranking/one", "oof_ranking/two"):
        own_graph.store.delete(key)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
    )
    command = [sys.executable, "-m", "orchestration.cli", "materialize", "--until", "oof_ranking"]
    passes = [
        subprocess.Popen(command, cwd=ROOT, env=environment(own_graph, recipe), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in passes]
    assert [process.returncode for process in passes] == [0, 0], errors
    with own_graph.open() as driver:
        required = required_nodes(own_graph.recipe, until="oof_ranking")
        assert all(driver.up_to_date(node) for node in required)
        for node in required:
            driver.store.fetch(driver.store.require(node.key))
        assert driver.instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0


@pytest.mark.slow
def test_the_servers_of_make_ui(own_graph: Graph, tmp_path: Path) -> None:
    """RELIABILITY F47, F48: both answer on loopback alone, refuse foreign hosts, and end with Ctrl-C."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(UI_RECIPE)
    with user_interface(own_graph, recipe) as (server, port, mlflow_port, lines):
        assert f"http://{HOST}:{port}" in lines[0]
        view = "workflowType=machine_learning&viewStateShareKey=results"  # the columns that matter
        assert lines[1] == f"MLflow   http://{HOST}:{mlflow_port}/#/experiments/1/runs?{view}\n"
        groups = asset_groups(port)
        assert groups == {
            (group, "yt8m") for group in ("data", "models", "predictions", "optional", "ensemble", "variants")
        }
        recipe.write_text(
            recipe.read_text() + "RECIPE = RECIPE.__class__(**{**vars(RECIPE), 'models': RECIPE.models[:1]})\n"
        )
        assert reload(port) == ["one"]
        assert refused(f"http://{HOST}:{mlflow_port}/", {"Host": "evil.example"}) == 403
        assert refused(f"http://{HOST}:{port}/", {"Host": "evil.example"}) == 421
        assert refused(f"http://{HOST}:{port}/graphql?query=mutation%7BwipeAssets%7D", {"Accept": "image/*"}) == 405
        assert refused(f"http://{HOST}:{port}/graphql", {"Origin": "http://evil.example"}, b"{}") == 403
        assert f"http://{HOST}:{mlflow_port}/#/experiments/1/runs/" in mlflow_link(port)
        assert not reachable_from_outside(port)
        assert not reachable_from_outside(mlflow_port)
        again = subprocess.run(
            server.args,  # type: ignore[arg-type]
            cwd=tmp_path,
            env=environment(own_graph, recipe),
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 1
        assert f"port {port} is in use" in again.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    assert not answers(f"http://{HOST}:{port}")
    assert not answers(f"http://{HOST}:{mlflow_port}")
    for log in (own_graph.state.root / "logs").iterdir():
        assert b"\x1b[" not in log.read_bytes(), log


UI_RECIPE = (
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"
)


@contextmanager
def user_interface(
    graph: Graph, recipe: Path, **values: str
) -> Iterator[tuple["subprocess.Popen[str]", int, int, list[str]]]:
    """`yt8m ui`, started in the recipe's folder, which is named by it alone: process, ports and what it says."""
    port, mlflow_port = free_port(), free_port()
    command = [sys.executable, "-m", "orchestration.cli", "ui", "--port", str(port), "--mlflow-port", str(mlflow_port)]
    own = {**environment(graph, Path(recipe.name)), "PYTHONPATH": str(ROOT), **values}
    server = subprocess.Popen(
        command, cwd=recipe.parent, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    try:
        yield server, port, mlflow_port, [server.stdout.readline() for _ in range(3)]
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        server.stdout.close()


def family(process_id: int) -> list[psutil.Process]:
    """A process and all that came from it."""
    return [psutil.Process(process_id), *psutil.Process(process_id).children(recursive=True)]


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Address and port of everything that takes connections."""
    found = [each for process in processes for each in process.net_connections("inet")]
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


@pytest.mark.processes
def test_the_end_of_the_terminal_ends_all_servers(own_graph: Graph, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(UI_RECIPE)
    with user_interface(own_graph, recipe) as (server, port, mlflow_port, _):
        processes = family(server.pid)
        assert listening(processes) == {(HOST, port), (HOST, mlflow_port)}, "the code server has a socket of its own"
        commands = " ".join(" ".join(process.cmdline()) for process in processes)
        assert all(name in commands for name in ("orchestration.guard", "dagster._daemon", "code-server", "mlflow"))
        server.send_signal(signal.SIGHUP)
        assert server.wait(30) == 0
        _, alive = psutil.wait_procs(processes, 5)
        assert not alive


@pytest.mark.slow
def test_a_tracking_server_of_ones_own(own_graph: Graph, tmp_path: Path) -> None:
    """No MLflow is started, its port may be taken, and the address is the one of the variable, without credentials."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(UI_RECIPE)
    with tracking_server() as address:
        own = f"http://alice:secret@{address}"
        with user_interface(own_graph, recipe, MLFLOW_TRACKING_URI=own) as (server, _, mlflow_port, lines):
            assert lines[1] == f"MLflow   http://{address}/#/experiments/7/runs?workflowType=machine_learning\n"
            assert not answers(f"http://{HOST}:{mlflow_port}")
            environments = [process.environ().get("YT8M_MLFLOW_UI_URL") for process in family(server.pid)[1:]]
            assert set(environments) == {f"http://{address}"}


@contextmanager
def tracking_server() -> Iterator[str]:
    """Answers as MLflow does when it is asked for the experiment with the right credentials; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'alice:secret').decode()}"
            body = json.dumps({"experiment": {"experiment_id": "7"}}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{HOST}:{server.server_port}"
        server.shutdown()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("text", "values", "reason"),
    [
        ("RECIPE = 1/0\n", {}, "recipe.py': ZeroDivisionError: division by zero"),
        (UI_RECIPE, {"YT8M_DEPLOYMENT": '{"gpu_type": "abacus"}'}, "abacus"),
    ],
)
def test_definitions_that_cannot_be_loaded(
    own_graph: Graph, tmp_path: Path, text: str, values: dict[str, str], reason: str
) -> None:
    """The reason, an exit code, and nothing left behind; no announcement of success."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    with user_interface(own_graph, recipe, **values) as (server, port, _, lines):
        assert server.wait(60) == 1
        said = "".join(lines)
        assert reason in said
        assert "Dagster  http" not in said
        assert not answers(f"http://{HOST}:{port}")


def refused(url: str, headers: dict[str, str], body: bytes | None = None) -> int:
    """The status with which a server refuses a request."""
    json_type = {"Content-Type": "application/json"} if body else {}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body, {**json_type, **headers}), timeout=10)
    caught.value.close()
    return int(caught.value.code)


def mlflow_link(port: int) -> str:
    """The link to MLflow that the page of a model shows: it was kept when MLflow had another port."""
    query = """{ assetNodeOrError(assetKey: {path: ["finetuned_model"]}) { ... on AssetNode {
      assetMaterializations(limit: 1) { metadataEntries { label ... on UrlMetadataEntry { url } } } } } }"""
    (made,) = Dagster(port).ask(query)["assetNodeOrError"]["assetMaterializations"]
    return str(next(entry["url"] for entry in made["metadataEntries"] if entry["label"] == "mlflow_url"))


def asset_groups(port: int) -> set[tuple[str, str]]:
    """Groups and code locations that Dagster's page would show; the code location may still be loading."""
    query = json.dumps({"query": "{assetNodes{groupName repository{location{name}}}}"}).encode()
    request = urllib.request.Request(f"http://{HOST}:{port}/graphql", query, {"Content-Type": "application/json"})
    for _ in range(60):
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["assetNodes"]
        if nodes:
            return {(node["groupName"], node["repository"]["location"]["name"]) for node in nodes}
        time.sleep(1)
    return set()


def reload(port: int) -> list[str]:
    """The models that the pages show after "Reload" was pressed."""
    dagster = Dagster(port)
    dagster.ask('mutation { reloadRepositoryLocation(repositoryLocationName: "yt8m") { __typename } }')
    query = '{ assetNodeOrError(assetKey: {path: ["finetuned_model"]}) { ... on AssetNode { partitionKeys } } }'
    return list(dagster.ask(query)["assetNodeOrError"]["partitionKeys"])


def reachable_from_outside(port: int) -> bool:
    """Whether the port answers at another address of this machine than loopback's 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.2", port)) == 0
