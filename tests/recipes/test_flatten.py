"""A recipe written out in full is the same recipe, wherever it is read."""

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import KNOWN_RECIPES, load_recipe
from yt8m_assets.recipes.loading import flatten
from yt8m_assets.recipes.schema import Recipe

RECIPES = [*map(load_recipe, KNOWN_RECIPES), tiny_recipe()]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_file_of_every_field_gives_the_same_recipe(recipe: Recipe, tmp_path: Path):
    path = tmp_path / "other.json"
    if recipe.data.simulation is None:  # relative paths are meant from the file's own folder
        files = {"segment_classes_uri": "gs://b/classes.csv", "vocabulary_uri": "gs://b/vocabulary.csv"}
        recipe = replace(recipe, data=replace(recipe.data, **files))
    path.write_text(json.dumps(flatten(recipe)))
    assert load_recipe(path) == recipe


def test_what_json_cannot_say_is_refused():
    recipe = tiny_recipe()
    odd = replace(recipe.models[0], overrides={"sizes": (1, 2)})
    with pytest.raises(ConfigError, match="such as a tuple"):
        flatten(replace(recipe, models=(odd,)))


def test_a_recipe_in_a_bucket_means_what_lies_beside_it():
    files = fsspec.filesystem("memory")
    own = {"base": "base.json", "data": {"segment_classes_uri": "classes.csv"}, "seed": 3}
    files.pipe_file("/flat/base.json", b'{"base": "challenge", "bootstrap_rounds": 7}')
    files.pipe_file("/flat/own.json", json.dumps(own).encode())
    recipe = load_recipe("memory://flat/own.json")
    assert recipe.data.segment_classes_uri == "memory://flat/classes.csv"
    assert (recipe.name, recipe.seed, recipe.bootstrap_rounds) == ("own", 3, 7)
    with pytest.raises(ConfigError, match=r"only a \.json recipe is read from a bucket"):
        load_recipe("memory://flat/own.py")
    with pytest.raises(ConfigError, match=r"none\.json: no such object"):
        load_recipe("memory://flat/none.json")
