from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.tracking_server import FaultyServer, faulty_server
from yt8m_assets.storage import ArtifactStore


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with faulty_server(mlflow_uri, str(tmp_path / "artifacts"), monkeypatch) as started:
        yield started


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send and try again at once."""
    monkeypatch.setattr("yt8m_assets.tracking.live.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("yt8m_assets.tracking.live._RETRY_SECONDS", (0.1,))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
