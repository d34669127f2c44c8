"""Recipes by name, from Python files and from JSON overlays; hostile files are refused (RELIABILITY F49)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import KNOWN_RECIPES, demo_beyond, load_recipe
from yt8m_assets.recipes.loading import MAX_FILE_SIZE
from yt8m_assets.recipes.overlay import construct
from yt8m_assets.stages.training import model_spec
from yt8m_assets.training.config import TrainingConfig


def write(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("name", KNOWN_RECIPES)
def test_known_names_load(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize("name", KNOWN_RECIPES)
def test_every_model_of_a_known_recipe_can_be_built(name: str) -> None:
    recipe = load_recipe(name)
    for key in recipe.model_keys:
        with torch.device("meta"):
            assert model_spec(recipe, key).build().num_classes == recipe.data.num_classes


def test_what_goes_beyond_the_demo_leaves_the_demo_s_own_as_they_are() -> None:
    demo, beyond = load_recipe("demo"), load_recipe("demo_beyond")
    for own, other in zip(demo.models, beyond.models[:-1], strict=True):
        trained = replace(other, pretraining=own.pretraining, finetuning=own.finetuning)
        assert trained == own
        assert (other == own) is (own.key not in demo_beyond.LONGER)
    assert replace(beyond, name="demo", models=demo.models, second_stage=False) == demo
    assert "frame_scorer" not in load_recipe("challenge").model_keys


def test_overlay_changes_nested_fields_and_nothing_else(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.json",
        base="demo",
        prediction={"top_k": 7, "tta_w0": 2, "candidate_classes": 20},
        data={"simulation": {"num_test_videos": 9}, "holdout": {"fraction": 0.5}},
        models={"bert_l2h12": {"finetuning": {"num_steps": 3}, "shifts": [0, 2], "overrides": {"num_layers": 1}}},
    )
    base, recipe = load_recipe("demo"), load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.prediction.top_k == 7
    assert recipe.prediction.tta_w0 == 2.0
    assert recipe.prediction.candidate_classes == 20
    assert recipe.prediction.batch_size == base.prediction.batch_size
    assert recipe.data.simulation is not None
    assert recipe.data.simulation.num_test_videos == 9
    changed = recipe.model("bert_l2h12")
    assert changed.finetuning.num_steps == 3
    assert changed.pretraining == base.model("bert_l2h12").pretraining
    assert changed.shifts == (0, 2)
    assert dict(changed.overrides) == {**base.model("bert_l2h12").overrides, "num_layers": 1}
    assert recipe.model("bert_l3h12") == base.model("bert_l3h12")


def test_overlay_may_keep_some_models_and_build_on_another_file(tmp_path: Path) -> None:
    write(tmp_path / "first.json", base="challenge", models=["bert_l3h12", "bert_l2h12"])
    second = load_recipe(write(tmp_path / "second.json", base="first.json", seed=5))
    assert second.model_keys == ("bert_l3h12", "bert_l2h12")
    assert second.seed == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction": {"topk": 1}}, r"unknown field 'prediction.topk'; known: .*top_k"),
        ({"colour": 1}, r"unknown field 'colour'; known: .*models"),
        ({"prediction": {"top_k": "many"}}, r"prediction.top_k = 'many': must be of type int"),
        ({"prediction": {"top_k": True}}, r"prediction.top_k = True: must be of type int"),
        ({"prediction": {"edges": "mirror"}}, r"prediction.edges = 'mirror': choose one of 'clamp', 'wrap'"),
        ({"prediction": 3}, r"prediction = 3: give an object"),
        ({"prediction": {"tta_w0": float("inf")}}, r"prediction.tta_w0 = inf: must be finite"),
        ({"prediction": {"tta_w0": 10**400}}, r"prediction.tta_w0 = 10+: must be finite"),
        ({"data": {"test": json.loads("[" * 900 + "]" * 900)}}, "nested too deeply"),
        ({"prediction": {"top_k": 0}}, r"prediction.top_k = 0"),
        ({"prediction": {"top_k": 100_001}}, r"prediction.top_k = 100001: at most 100000 count"),
        ({"prediction": {"candidate_classes": 0}}, r"prediction.candidate_classes = 0: must be at least 1, or None"),
        ({"models": {"nobody": {}}}, r"unknown model 'nobody'.*bert_l2h12"),
        ({"models": 3}, r"models = 3"),
        ({"models": {"bert_l2h12": {"shifts": 0}}}, r"models.bert_l2h12.shifts = 0: give a list"),
        ({"models": {"bert_l2h12": {"shifts": [9]}}}, r"choose distinct shifts"),
        ({"data": {"feature_sizes": [1]}}, r"data.feature_sizes = \[1\]: give 2 values"),
        ({"data": {"num_workers": None}}, r"data.num_workers = None"),
    ],
)
def test_wrong_overlay_is_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "wrong.json", base="demo", **values)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert "wrong.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"base": 3}', "!!python/object/apply:os.system [id]", "[" * 100_000])
def test_hostile_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"hostile\.json"):
        load_recipe(path)


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text('{"base": "demo"}' + " " * MAX_FILE_SIZE)
    with pytest.raises(ConfigError, match="bytes"):
        load_recipe(path)


def test_a_recipe_that_builds_on_itself_ends(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="build on one another"):
        load_recipe(write(tmp_path / "loop.json", base="loop.json"))


@pytest.mark.parametrize("name", ["nobody", "demo.yaml", "missing.json", "missing.py", "nul\0.json"])
def test_unknown_name_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="recipe"):
        load_recipe(name)


def test_python_file_defines_recipe(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text("from yt8m_assets.recipes import load_recipe\nRECIPE = load_recipe('demo')\n")
    assert load_recipe(good) == load_recipe("demo")
    for name, text in {"none": "x = 1\n", "broken": "1 / 0\n"}.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"{name}\.py"):
            load_recipe(path)


def test_a_python_recipe_imports_what_lies_beside_it(tmp_path: Path) -> None:
    """Also again after a change, and from two folders with a file of the same name."""
    import sys

    before = list(sys.path)
    for folder, steps in (("first", 5), ("second", 6), ("first", 7)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "common_values.py").write_text(f"NAME = 'steps{steps:03}'\n# {'x' * steps}\n")
        (tmp_path / folder / "mine.py").write_text(
            "from dataclasses import replace\nfrom common_values import NAME\nfrom yt8m_assets.recipes import demo\n"
            "RECIPE = replace(demo.RECIPE, name=NAME)\n"
        )
        assert load_recipe(tmp_path / folder / "mine.py").name == f"steps{steps:03}"
    assert sys.path == before
    assert "common_values" not in sys.modules
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match="ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        load_recipe(tmp_path / "wrong.py")


def test_a_json_recipe_names_the_models_it_has(tmp_path: Path) -> None:
    """Chosen, changed and added to in one file; the order is the list's."""
    values = {
        "base": "challenge",
        "models": {
            "bert_l2h12": {"shifts": [0]},
            "bert_narrow": {"base": "bert_l2h12", "title": "narrow", "overrides": {"intermediate_size": 64}},
        },
        "model_keys": ["bert_narrow", "bert_l2h12"],
    }
    recipe = load_recipe(write(tmp_path / "mine.json", **values))
    assert recipe.model_keys == ("bert_narrow", "bert_l2h12")
    assert recipe.model("bert_l2h12").shifts == (0,)
    narrow = recipe.model("bert_narrow")
    assert (narrow.architecture, narrow.title, dict(narrow.overrides)) == (
        "bert_l2h12",
        "narrow",
        {"intermediate_size": 64},
    )
    for wrong, message in {
        "unknown model 'bert_x'": {"model_keys": ["bert_x"]},
        "unknown model 'bert_y'": {"models": {"bert_y": {"shifts": [0]}}},
        "unknown model 'bert_z'; recipe": {"models": {"bert_y": {"base": "bert_z"}}},
        "model_keys = 'all': give the list": {"model_keys": "all"},
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            load_recipe(write(tmp_path / "wrong.json", base="challenge", **message))


def test_data_of_ones_own_on_a_simulated_base(tmp_path: Path) -> None:
    own = {"pretraining": ["a*"], "segments": ["b*"], "test": ["c*"], "segment_classes_uri": "classes.csv"}
    with pytest.raises(ConfigError, match=r'the data is simulated\. For data of your own write "simulation": null'):
        load_recipe(write(tmp_path / "mine.json", base="demo", data=own))
    recipe = load_recipe(write(tmp_path / "mine.json", base="demo", data={**own, "simulation": None}))
    assert recipe.data.simulation is None
    assert recipe.data.segments == (f"{tmp_path}/b*",)


def test_paths_of_data_are_meant_from_the_recipes_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    data = {"simulation": None, "segments": ["../data/3/validate*.tfrecord", "gs://bucket/v*"], "test": ["/data/t*"]}
    (folder / "own.json").write_text(json.dumps({"base": "challenge", "data": data}))
    (elsewhere / "variant.json").write_text(json.dumps({"base": "../recipes/own.json"}))
    monkeypatch.chdir(tmp_path)
    for name in ("recipes/own.json", "elsewhere/variant.json"):
        found = load_recipe(name).data
        assert found.segments == (f"{tmp_path}/data/3/validate*.tfrecord", "gs://bucket/v*")
        assert found.test == ("/data/t*",)


def test_a_field_given_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"base": "demo", "prediction": {"top_k": 3, "top_k": 4}}')
    with pytest.raises(ConfigError, match=r"mine.json'.*the field 'top_k' is given twice"):
        load_recipe(path)
    path.write_text('{"base": "demo", "modls": {}}')
    with pytest.raises(ConfigError, match=r"known: .*; in a JSON recipe also base and model_keys"):
        load_recipe(path)


def test_what_a_new_object_lacks_is_named() -> None:
    """Where there is nothing to take a missing field from."""
    with pytest.raises(ConfigError, match=r"^finetuning: .*num_steps"):
        construct(TrainingConfig, {"learning_rate": 0.1}, "finetuning")
    assert construct(TrainingConfig, {"num_steps": 3}, "finetuning") == TrainingConfig(num_steps=3)
