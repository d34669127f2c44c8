"""Fixtures of the prediction tests."""

import shutil
from pathlib import Path

import pytest

from tests.graph import data_graph, open_store
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore

__all__ = ["data_graph"]


@pytest.fixture
def graph(data_graph: tuple[Recipe, Path], tmp_path: Path) -> tuple[Recipe, ArtifactStore]:
    """The tiny recipe and a store of this test's own with data and untrained models."""
    recipe, folder = data_graph
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return recipe, open_store(tmp_path)
