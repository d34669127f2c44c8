"""`yt8m ui`: Dagster's and MLflow's pages over one state, on this machine only."""

import argparse
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestration.settings import Settings, absolute_recipe, is_database
from orchestration.state import State, prepare_state, project_root
from orchestration.ui_mlflow import HOST, count_runs, mlflow_command, mlflow_page, mlflow_stores
from yt8m_assets.errors import ConfigError, StorageError
from yt8m_assets.recipes import load_recipe

LOCATION = "yt8m"
"""What Dagster's pages call the code location, as in workspace.yaml and pyproject.toml."""
STARTUP_SECONDS = 90.0
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
LOG_BYTES = 10_000_000
"""Of a server's log, half of what it may take."""
TIDY_SECONDS = 30.0
"""Pause between two looks for runs whose processes are dead."""
_LOCATION_QUERY = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError {
  ... on PythonError { message errorChain { error { message } } } } } } } }"""


def command_ui(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C, SIGTERM or the end of the terminal."""
    state = prepare_state(arguments.state)
    given = {"YT8M_RECIPE": absolute_recipe(arguments.recipe)} if arguments.recipe else {}
    settings = Settings.from_environment(state, {**os.environ, **given})
    load_recipe(settings.recipe)  # a mistake there is said at once, and not in a log
    serves_mlflow = is_database(settings.tracking_uri)
    for port in (arguments.port, *([arguments.mlflow_port] if serves_mlflow else [])):
        require_free(port)
    mlflow_url, dagster_url = f"http://{HOST}:{arguments.mlflow_port}", f"http://{HOST}:{arguments.port}"
    environment = server_environment(state, settings, mlflow_url if serves_mlflow else None)
    logs = state.root / "logs"
    logs.mkdir(exist_ok=True)
    servers: list[subprocess.Popen[bytes]] = []
    end_on_signals()  # from here on there are servers to be ended, whoever ends this process

    def launch(name: str, command: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        servers.append(start(command, {**environment, **more}, logs / f"{name}.log"))
        return servers[-1]

    # A socket's path may have about 100 characters: too few for some state folders.
    with tempfile.TemporaryDirectory(prefix="yt8m-") as folder:
        address = Path(folder) / "code.sock"
        try:
            awaited = {}
            if serves_mlflow:
                mlflow = launch("mlflow", mlflow_command(arguments.mlflow_port), **mlflow_stores(settings))
                awaited[mlflow_url] = mlflow
            tidy_state(state)  # makes the databases where they are missing, before several servers would
            code = launch("code", code_command(address))
            wait_until(lambda: listens(address), code, "the code server", logs)
            workspace = write_workspace(address)
            awaited[dagster_url] = launch("dagster", webserver_command(arguments.port, workspace))
            launch("daemon", daemon_command(workspace))
            for url, server in awaited.items():
                wait_until(lambda url=url: answers(url), server, url, logs)  # type: ignore[misc]
            require_location(dagster_url, logs)
            shown = mlflow_page(mlflow_url if serves_mlflow else settings.tracking_uri, settings)
            ready = f"Dagster  {dagster_url}\nMLflow   {shown}\nCtrl-C ends both; their logs are in {logs}\n"
            return serve(servers, logs, lambda: tidy_state(state), ready)
        finally:
            stop(servers)


def end_on_signals() -> None:
    """Let SIGTERM and the end of the terminal do what Ctrl-C does; `nohup` is respected."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) != signal.SIG_IGN:
            signal.signal(sign, interrupt)


def tidy_state(state: State) -> None:
    """End the runs of dead processes and free their slots; let MLflow's database know how much it holds.

    Trouble with a database is left to the servers.
    """
    import dagster as dg
    from sqlalchemy.exc import SQLAlchemyError

    from orchestration.instance import driver_instance
    from orchestration.pools import tidy

    with suppress(SQLAlchemyError, dg.DagsterError, StorageError), driver_instance(state) as instance:
        tidy(instance)
    with suppress(sqlite3.Error):
        count_runs(state.root / "mlflow" / "mlflow.db")


def server_environment(state: State, settings: Settings, mlflow_url: str | None) -> dict[str, str]:
    """Environment of the servers: the prepared state, what the settings say in absolute words, links to `mlflow_url`.

    MLflow's telemetry and risky parts are off. Without `mlflow_url` links lead to the tracking server of one's own.
    """
    values = dict(os.environ)
    values |= {
        "DAGSTER_HOME": str(state.dagster_home),
        "YT8M_STATE": str(state.root),
        "YT8M_RECIPE": settings.recipe,
        "YT8M_STORAGE": settings.storage_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }
    if values.get("MLFLOW_TRACKING_URI"):
        values["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    if not values.get("YT8M_MLFLOW_UI_URL"):
        values["YT8M_MLFLOW_UI_URL"] = mlflow_url or settings.mlflow_ui_url
    return values


def code_command(address: Path) -> list[str]:
    """The server of the definitions, which loads them anew when a page asks for it."""
    location = ["-m", "orchestration.definitions", "--location-name", LOCATION, "--use-python-environment-entry-point"]
    return [sys.executable, "-m", "dagster", "code-server", "start", "-s", str(address), *location]


def write_workspace(address: Path) -> Path:
    """A workspace file that names the code server, beside its socket."""
    path = address.with_name("workspace.yaml")
    path.write_text(f'load_from: [{{grpc_server: {{socket: "{address}", location_name: {LOCATION}}}}}]\n')
    return path


def webserver_command(port: int, workspace: Path) -> list[str]:
    """Dagster's pages, behind the guard."""
    return [sys.executable, "-m", "orchestration.guard", "-h", HOST, "-p", str(port), "-w", str(workspace)]


def daemon_command(workspace: Path) -> list[str]:
    """What launches queued runs and backfills, watches runs and ticks sensors."""
    return [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]


def require_location(dagster_url: str, logs: Path) -> None:
    """Wait until the definitions are loaded. Raises ConfigError with the reason why they cannot be."""
    request = urllib.request.Request(
        f"{dagster_url}/graphql", json.dumps({"query": _LOCATION_QUERY}).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(request, timeout=10) as answer:
            (entry,) = json.load(answer)["data"]["workspaceOrError"]["locationEntries"]
            error = entry["locationOrLoadError"] or {}
            if "message" in error:
                chain = [cause["error"]["message"] for cause in error["errorChain"]]
                reason = (chain or [error["message"]])[-1].strip()
                raise ConfigError(f"the definitions cannot be loaded: {reason} (more in {logs / 'code.log'})")
            if entry["loadStatus"] == "LOADED":
                return
        time.sleep(0.2)
    raise StorageError(f"the definitions were not loaded in time; see the logs in {logs}")


def require_free(port: int) -> None:
    """Raise ConfigError when something listens on the port already."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            raise ConfigError(f"port {port} is in use; choose others with --port and --mlflow-port")


def start(command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that its children can be ended with it; its log has no colours."""
    server = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=project_root(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log_path.write_bytes(b"")
    threading.Thread(target=write_log, args=(server.stdout, log_path), daemon=True).start()
    return server


def write_log(lines: Iterable[bytes], path: Path) -> None:
    """Append lines; a log of LOG_BYTES becomes `NAME.log.1` in place of the one before, and a new one is begun."""
    log = path.open("ab", buffering=0)
    for line in lines:
        log.write(_COLOURS.sub(b"", line))
        if log.tell() >= LOG_BYTES:
            log.close()
            path.replace(f"{path}.1")
            log = path.open("ab", buffering=0)
    log.close()


def wait_until(ready: Callable[[], bool], server: "subprocess.Popen[bytes]", name: str, logs: Path) -> None:
    """Wait until a server is ready. Raises StorageError naming the logs when it ends or takes too long."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while not ready():
        if server.poll() is not None or time.monotonic() > deadline:
            raise StorageError(f"{name} did not start; see the logs in {logs}")
        time.sleep(0.1)


def listens(address: Path) -> bool:
    """Whether a server takes calls at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(address)) == 0


def answers(url: str) -> bool:
    """Whether a server answers at the address."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def serve(servers: Sequence[subprocess.Popen[bytes]], logs: Path, tidy: Callable[[], None], ready: str) -> int:
    """Say that all is ready; wait for Ctrl-C, another signal to end or the end of a server, and tidy up meanwhile."""
    tidied = time.monotonic()
    try:
        sys.stdout.write(ready)
        sys.stdout.flush()  # who reads it may send the signal at once
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
            if time.monotonic() - tidied > TIDY_SECONDS:
                tidy()
                tidied = time.monotonic()
    except KeyboardInterrupt:
        return 0
    raise StorageError(f"a server has ended by itself; see the logs in {logs}")


def stop(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the servers and their children: asked first, forced after ten seconds; no signal keeps us from it."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_IGN)
    for sign, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, sign)
        deadline = time.monotonic() + seconds
        for server in servers:
            try:
                server.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue
