"""`yt8m ui`: Dagster's and MLflow's pages over one state, on this machine only."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestration.settings import Settings
from orchestration.state import State, prepare_state, project_root
from yt8m_assets.errors import ConfigError, StorageError

HOST = "127.0.0.1"
"""Neither server knows users: never another address. SECURITY.md says how to publish them behind a proxy."""
LOCATION = "yt8m"
"""What Dagster's pages call the code location, as in workspace.yaml."""
STARTUP_SECONDS = 90.0


def command_ui(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    state = prepare_state(arguments.state)
    for port in (arguments.port, arguments.mlflow_port):
        require_free(port)
    mlflow_url, dagster_url = f"http://{HOST}:{arguments.mlflow_port}", f"http://{HOST}:{arguments.port}"
    environment = server_environment(state, arguments.recipe, mlflow_url)
    settings = Settings.from_environment(state)
    logs = state.root / "logs"
    logs.mkdir(exist_ok=True)
    servers: list[subprocess.Popen[bytes]] = []
    # From here on there are servers to be ended, whoever ends this process.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))

    def launch(name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        servers.append(start(command, environment, logs / f"{name}.log"))
        return servers[-1]

    # A socket's path may have about 100 characters: too few for some state folders.
    with tempfile.TemporaryDirectory(prefix="yt8m-") as folder:
        address = Path(folder) / "code.sock"
        try:
            shown, awaited = settings.mlflow_ui_url, {}
            if settings.tracking_uri.startswith("sqlite"):
                shown = mlflow_url
                awaited[mlflow_url] = launch("mlflow", mlflow_command(settings, arguments.mlflow_port))
            code = launch("code", code_command(address))
            wait_until(lambda: listens(address), code, "the code server", logs)
            workspace = write_workspace(address)
            awaited[dagster_url] = launch("dagster", webserver_command(arguments.port, workspace))
            launch("daemon", daemon_command(workspace))
            for url, server in awaited.items():
                wait_until(lambda url=url: answers(url), server, url, logs)  # type: ignore[misc]
            sys.stdout.write(f"Dagster  {dagster_url}\nMLflow   {shown}\nCtrl-C ends both; their logs are in {logs}\n")
            sys.stdout.flush()
            return serve(servers, logs)
        finally:
            stop(servers)


def server_environment(state: State, recipe: str | None, mlflow_url: str) -> dict[str, str]:
    """Environment of the servers: the prepared state, links to this MLflow; its telemetry and risky parts are off."""
    values = dict(os.environ)
    values |= {
        "DAGSTER_HOME": str(state.dagster_home),
        "YT8M_STATE": str(state.root),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }
    values.setdefault("YT8M_MLFLOW_UI_URL", mlflow_url)
    if recipe:
        values["YT8M_RECIPE"] = str(Path(recipe).resolve()) if Path(recipe).suffix else recipe
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
    """Dagster's pages."""
    return [sys.executable, "-m", "dagster_webserver", "-h", HOST, "-p", str(port), "-w", str(workspace)]


def daemon_command(workspace: Path) -> list[str]:
    """What launches queued runs and backfills, watches runs and ticks sensors."""
    return [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]


def mlflow_command(settings: Settings, port: int) -> list[str]:
    """The tracking server over the embedded database."""
    stores = ["--backend-store-uri", settings.tracking_uri, "--default-artifact-root", str(settings.artifact_location)]
    return [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", *stores]


def require_free(port: int) -> None:
    """Raise ConfigError when something listens on the port already."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((HOST, port)) == 0:
            raise ConfigError(f"port {port} is in use; choose others with --port and --mlflow-port")


def start(command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that its children can be ended with it."""
    with log_path.open("wb") as log:
        return subprocess.Popen(
            command, env=dict(environment), cwd=project_root(), stdout=log, stderr=log, start_new_session=True
        )


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


def serve(servers: Sequence[subprocess.Popen[bytes]], logs: Path) -> int:
    """Wait for Ctrl-C, SIGTERM or the end of a server."""
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    raise StorageError(f"a server has ended by itself; see the logs in {logs}")


def stop(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the servers and their children: asked first, forced after ten seconds."""
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
