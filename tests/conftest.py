"""What several test packages share: a migrated MLflow database (building one takes seconds), and small graphs.

A `graph` is (recipe, store): the tiny recipe and a store with its data and untrained models (`graph`) or with all
predictions and rankings as well (`ranked_graph`); each test gets a copy of its own.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.nodeid import coerce_node_id

# numpy's and torch's thread pools only get in each other's way on tiny inputs
os.environ.setdefault("OMP_NUM_THREADS", "1")


_FOREIGN_WARNINGS = (
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:starlette.middleware.wsgi is deprecated",
    "ignore:.*Any type hint is inferred as AnyType",
)
"""Warnings of MLflow's own code about its own dependencies; all others are errors (pyproject.toml)."""


def pytest_configure(config: pytest.Config) -> None:
    """Let foreign warnings pass."""
    for line in _FOREIGN_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def migrated_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite file with MLflow's tables, kept in pytest's cache for the next session."""
    import mlflow
    from mlflow import MlflowClient

    cached = Path(request.config.cache.mkdir(f"mlflow-{mlflow.__version__}")) / "empty.db"
    if not cached.is_file():
        folder = tmp_path_factory.mktemp("mlflow")
        MlflowClient(f"sqlite:///{folder}/empty.db").search_experiments(max_results=1)
        temporary = cached.with_name(f"{os.getpid()}.db")
        shutil.copyfile(folder / "empty.db", temporary)
        temporary.replace(cached)
    return cached


@pytest.fixture
def mlflow_uri(migrated_database: Path, tmp_path: Path) -> str:
    """URI of a fresh tracking database of this test."""
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """Address of an emulated Google Cloud Storage with one bucket, `gs://yt`; each test uses a folder of its own."""
    from tests.emulator import storage_emulator

    with storage_emulator() as address:
        yield address


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A running PostgreSQL (tests/postgres.py); each test makes databases of its own in it."""
    from tests.postgres import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.graph import make_data, open_store
    from tests.tiny import tiny_recipe

    folder = tmp_path_factory.mktemp("data_graph")
    make_data(tiny_recipe(), open_store(folder))
    return folder


@pytest.fixture(scope="session")
def _ranked_folder(_data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.graph import make_rankings, open_store
    from tests.tiny import tiny_recipe

    folder = tmp_path_factory.mktemp("ranked_graph")
    shutil.copytree(_data_folder, folder, dirs_exist_ok=True)
    make_rankings(tiny_recipe(), open_store(folder))
    return folder


def _copy(folder: Path, target: Path) -> tuple[Any, Any]:
    from tests.graph import open_store
    from tests.tiny import tiny_recipe

    shutil.copytree(folder, target, dirs_exist_ok=True)
    return tiny_recipe(), open_store(target)


@pytest.fixture
def graph(_data_folder: Path, tmp_path: Path) -> tuple[Any, Any]:
    """The tiny recipe, and a store with data, ratings and untrained models."""
    return _copy(_data_folder, tmp_path / "graph")


@pytest.fixture
def ranked_graph(_ranked_folder: Path, tmp_path: Path) -> tuple[Any, Any]:
    """The same with every prediction and ranking."""
    return _copy(_ranked_folder, tmp_path / "graph")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hand xdist's groups on: it writes them where pytest has looked up to 9.1, so that it groups nothing since."""
    for item in items:
        name = vars(item).get("_nodeid")
        if name is not None and name != item.nodeid:
            item._id = coerce_node_id(name)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _own_mlflow_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker tells MLflow's client by the environment, its patience for example, ends with its test."""
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        if name not in os.environ:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
