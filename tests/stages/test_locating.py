"""Where a recipe's shards and class files lie: below a relative root, and where they are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import SIMULATION, tiny_recipe
from yt8m_assets.data.simulation import dataset_paths
from yt8m_assets.errors import MissingDataError
from yt8m_assets.stages.locating import data_slice, locate_shards, simulated_folder
from yt8m_assets.storage import ArtifactStore


def test_a_root_with_two_dots_is_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated shards below `../storage` were not found: a listing's paths have no `..`, the store's had."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store = ArtifactStore("../storage", tmp_path / "cache")
    assert store.root_uri == str(tmp_path / "storage")
    recipe = tiny_recipe()
    assert len(locate_shards(recipe, store, "segment_shards")) == SIMULATION.num_validate_shards


@pytest.mark.parametrize("field", ["segment_classes_uri", "vocabulary_uri"])
def test_a_missing_class_file_is_named_with_its_field(tmp_path: Path, field: str) -> None:
    recipe, store = tiny_recipe(), ArtifactStore(str(tmp_path / "root"), tmp_path / "cache")
    paths = dataset_paths(SIMULATION, simulated_folder(recipe, store))
    assert locate_shards(recipe, store, "segment_shards")
    values = {"segment_classes_uri": str(paths.segment_label_ids), "vocabulary_uri": str(paths.vocabulary)}
    values[field] = f"{tmp_path}/nope.csv"
    segments, test = tuple(map(str, paths.segments)), tuple(map(str, paths.test))
    data = replace(recipe.data, simulation=None, pretraining=segments, segments=segments, test=test, **values)
    with pytest.raises(MissingDataError, match=rf"data\.{field} = '{tmp_path}/nope.csv': cannot be read: No such file"):
        data_slice(replace(recipe, data=data), store, "segment_shards")


def test_what_enters_is_named_as_explanations_name_it(tmp_path: Path) -> None:
    recipe, store = tiny_recipe(), ArtifactStore(str(tmp_path / "root"), tmp_path / "cache")
    paths = dataset_paths(SIMULATION, simulated_folder(recipe, store))
    assets = ("pretraining_shards", "segment_shards", "test_shards")
    assert all(locate_shards(recipe, store, asset) for asset in assets)
    segments, test = tuple(map(str, paths.segments)), tuple(map(str, paths.test))
    files = {"segment_classes_uri": str(paths.segment_label_ids), "vocabulary_uri": str(paths.vocabulary)}
    data = replace(recipe.data, simulation=None, pretraining=segments, segments=segments, test=test, **files)
    found = {asset: set(data_slice(replace(recipe, data=data), store, asset)) for asset in assets}
    assert found == {
        "pretraining_shards": {"shards", "held_out"},
        "segment_shards": {"shards", "segment_classes", "vocabulary"},
        "test_shards": {"shards"},
    }
