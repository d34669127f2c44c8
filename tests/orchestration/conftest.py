"""The tiny graph, materialised once for every test that looks at it, and copied for those that change it."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from orchestration.cli import main
from orchestration.driver import Driver, Outcome, open_driver
from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from tests.tiny import tiny_recipe
from yt8m_assets.partitions import partition_key
from yt8m_assets.progress import NullProgress, Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

ENVIRONMENT = (
    "DAGSTER_HOME",
    "YT8M_STATE",
    "YT8M_STORAGE",
    "YT8M_RECIPE",
    "YT8M_EXECUTOR",
    "YT8M_BACKFILL",
    "MLFLOW_TRACKING_URI",
)

Run = Callable[..., tuple[int, str, str]]
RECIPE = "from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"


class RecordingProgress(NullProgress):
    """Keeps the lines that it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    @property
    def steps(self) -> list[str]:
        """Titles of the runs that were made."""
        return [line.removeprefix("-- ").strip() for line in self.lines if line.startswith("-- ")]


@dataclass(frozen=True)
class Graph:
    """A recipe over a state folder."""

    recipe: Recipe
    state: State
    first: Outcome | None = None

    @property
    def settings(self) -> Settings:
        return Settings.from_environment(self.state, {})

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.settings.storage_uri, self.settings.cache_path)

    def open(self, recipe: Recipe | None = None, progress: Progress | None = None) -> Driver:
        return open_driver(recipe or self.recipe, self.state, self.settings, progress or NullProgress())


def report_verdict(instance: dg.DagsterInstance, node: Node, name: str, *, passed: bool) -> None:
    """Record a verdict of a check, as a run of it would."""
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(node.asset),
        check_name=name,
        passed=passed,
        blocking=True,
        partition=partition_key(node),
        description=None if passed else "found wanting",
    )
    instance.report_runless_asset_event(evaluation)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the materialised graph share a process when pytest runs in several, so that it is made once."""
    for item in items:
        if {"graph", "own_graph"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("graph"))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No setting of the person who runs the tests reaches them, and none of the tests' reaches others."""
    before = {name: os.environ.pop(name, None) for name in ENVIRONMENT}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Graph:
    """The whole tiny graph, materialised; tests only read it."""
    state = prepare_state(tmp_path_factory.mktemp("graph"))
    shutil.copyfile(migrated_database, state.root / "mlflow" / "mlflow.db")
    empty = Graph(tiny_recipe(), state)
    with empty.open() as driver:
        outcome = driver.materialize()
    return Graph(empty.recipe, state, outcome)


@pytest.fixture
def own_graph(graph: Graph, tmp_path: Path) -> Graph:
    """A copy of the materialised graph, to be changed."""
    for name in ("artifacts", "dagster", "mlflow"):
        shutil.copytree(graph.state.root / name, tmp_path / "state" / name)
    return Graph(graph.recipe, prepare_state(tmp_path / "state"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `yt8m ...` in this process: exit code, stdout, stderr. COLUMNS is wide, so that tables are not cut."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("DAGSTER_HOME", "")
    recipe = tmp_path / "tiny.py"
    recipe.write_text(RECIPE)

    def call(*arguments: object, recipe: str = str(recipe)) -> tuple[int, str, str]:
        texts = [str(argument) for argument in arguments]
        if recipe:
            texts += ["--recipe", recipe]
        code = main(texts)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
