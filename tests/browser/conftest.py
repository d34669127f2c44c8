"""Dagster's and MLflow's pages over the finished graph of `recipe.py`, as `yt8m ui` serves them, and a Chromium.

Making the graph takes minutes. YT8M_BROWSER_STATE names a folder where it is made once and kept for the next session;
YT8M_SCREENSHOTS names the folder of the pictures. Both are temporary otherwise.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser import quick_ui
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
RECIPE = Path(__file__).with_name("recipe.py")
NO_CHROMIUM = "no chromium on the PATH; install it: apt-get install --no-install-recommends chromium"
CHROMIUM_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_SECONDS = 180
PAGE_MILLISECONDS = 30_000
OWN_SETTINGS = ("DAGSTER_HOME", "YT8M_", "MLFLOW_", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Sites:
    """Addresses of the two servers."""

    dagster: str
    mlflow: str


def environment(mlflow: str) -> dict[str, str]:
    """This process's environment without what would lead the servers to another state, recipe or tracking server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    own = {"YT8M_MLFLOW_UI_URL": mlflow, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
    own |= {name: value for name, value in os.environ.items() if name == "YT8M_BROWSER_RECIPE"}
    return {**kept, "OMP_NUM_THREADS": "1", **own}


def ports_of(state: Path) -> tuple[str, str]:
    """Two ports that nothing listens on; a state keeps its own, because its metadata links to MLflow's."""
    path = state / "ports"
    if not path.is_file():
        state.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{free_port()} {free_port()}")
    first, second = path.read_text().split()
    return first, second


def command(name: str, state: Path, *options: str, recipe: Path = RECIPE, program: Path | None = None) -> list[str]:
    """The command line of `yt8m NAME` over a state; `program` may stand for `yt8m`."""
    yt8m = [str(program)] if program else ["-m", "orchestration.cli"]
    return [sys.executable, *yt8m, name, "--recipe", str(recipe), "--state", str(state), *options]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Debian's Chromium: where there is none, CI fails and everybody else skips."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.fixture(scope="session")
def sites(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """The pages, served over the finished graph until the session ends."""
    kept = os.environ.get("YT8M_BROWSER_STATE")
    state = Path(kept).resolve() if kept else tmp_path_factory.mktemp("browser") / "state"
    values = environment(f"http://127.0.0.1:{ports_of(state)[1]}")
    made = subprocess.run(command("materialize", state), cwd=ROOT, env=values, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with serve(state, program=Path(quick_ui.__file__)) as sites:
        yield sites
    if not kept:
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def serve(state: Path, recipe: Path = RECIPE, program: Path | None = None, **values: str) -> Iterator[Sites]:
    """`yt8m ui` over a state: the addresses, once both answer; ended with its children."""
    dagster_port, mlflow_port = ports_of(state)
    sites = Sites(f"http://127.0.0.1:{dagster_port}", f"http://127.0.0.1:{mlflow_port}")
    own = {**environment(sites.mlflow), **values}
    ports = ("--port", dagster_port, "--mlflow-port", mlflow_port)
    start = command("ui", state, *ports, recipe=recipe, program=program)
    log_path = state / "ui.log"
    with log_path.open("wb") as log:
        server = subprocess.Popen(start, cwd=ROOT, env=own, stdout=log, stderr=log)
    try:
        wait_for_line(server, log_path, "Ctrl-C")
        yield sites
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def wait_for_line(server: "subprocess.Popen[bytes]", log_path: Path, text: str) -> None:
    """Wait until the server says that it is ready."""
    deadline = time.monotonic() + START_SECONDS
    while text not in log_path.read_text():
        assert server.poll() is None, log_path.read_text()
        assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s: {log_path.read_text()}"
        time.sleep(0.3)


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(CHROMIUM_OPTIONS))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty window with a profile of its own, which reaches this machine only."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PAGE_MILLISECONDS)
    expect.set_options(timeout=PAGE_MILLISECONDS)  # which does not follow the context's
    context.route(lambda url: not url.startswith(("http://127.0.0.1:", "data:", "blob:")), lambda route: route.abort())
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Page, str], Path]:
    """Keeps what a window shows as NAME.png."""
    folder = Path(os.environ.get("YT8M_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))

    def keep(page: Page, name: str) -> Path:
        path = folder / f"{name}.png"
        page.screenshot(path=path, animations="disabled", caret="hide")
        return path

    return keep


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """What shares a pair of servers runs in one process, the whole day in another; with time for what they do."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))
            item.add_marker(pytest.mark.xdist_group("day" if item.path.stem == "test_walk" else "browser"))
