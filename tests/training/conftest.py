from pathlib import Path

import pytest

from tests.training.support import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny dataset."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder
