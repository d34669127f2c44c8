"""What several test packages share: a migrated MLflow database, copied for each test (building one takes seconds)."""

import os
import shutil
from pathlib import Path

import pytest

# numpy's and torch's thread pools only get in each other's way on tiny inputs
os.environ.setdefault("OMP_NUM_THREADS", "1")


_FOREIGN_WARNINGS = (
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:starlette.middleware.wsgi is deprecated",
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
