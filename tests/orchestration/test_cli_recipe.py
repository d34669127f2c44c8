"""`yt8m init-recipe`: a recipe for data of one's own."""

from pathlib import Path

import pytest

from tests.orchestration.conftest import Run
from yt8m_assets.recipes import load_recipe


def test_a_recipe_for_data_of_ones_own(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    code, out, _ = run("init-recipe", path, "--data", "gs://bucket/yt8m/", recipe="")
    assert code == 0
    assert f"yt8m materialize --recipe {path}" in out
    recipe = load_recipe(path)
    assert recipe.data.simulation is None
    assert recipe.data.test == ("gs://bucket/yt8m/3/frame/test/test*.tfrecord",)
    assert recipe.models == load_recipe("demo").models
    code, _, error = run("init-recipe", path, recipe="")
    assert code == 1
    assert "mine.json: exists" in error
    assert "ends in .json" in run("init-recipe", tmp_path / "mine.txt", recipe="")[2]
    code, _, error = run("init-recipe", tmp_path / "no" / "mine.json", recipe="")
    assert (code, error) == (1, f"yt8m: {tmp_path}/no/mine.json: cannot be written: No such file or directory\n")


@pytest.mark.parametrize("layout", ["{release}/frame/{split}", "{release}"])
def test_init_recipe_finds_shards_and_counts_classes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    data, recipes = tmp_path / "data", tmp_path / "recipes"
    for release, split in (("2", "train"), ("2", "validate"), ("3", "validate"), ("3", "test")):
        folder = data / layout.format(release=release, split=split)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}00.tfrecord").touch()
    (data / "vocabulary.csv").write_text("Index,Name\n0,A\n6,B\n")
    recipes.mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("init-recipe", "recipes/mine.json", "--data", "data", recipe="tiny.py")
    assert code == 0
    assert [line for line in out.splitlines() if "nothing there" in line] == [
        f"nothing there yet: {data}/segment_label_ids.csv"
    ]
    monkeypatch.chdir(recipes)
    found = load_recipe("mine.json").data
    assert found.num_classes == 7
    for pattern in (*found.pretraining, *found.segments, *found.test):
        assert list(Path("/").glob(pattern.removeprefix("/"))), pattern
