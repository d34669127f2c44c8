"""Defaults and bounds of a recipe."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import ModelRecipe, PredictionConfig, Recipe

TINY = tiny_recipe()


def test_every_option_and_its_default_is_known_here() -> None:
    assert asdict(PredictionConfig()) == {
        "batch_size": 512,
        "edges": "clamp",
        "top_k": 100_000,
        "tta_w0": 3.72384689385059,
        "precision": "float32",
        "compile": False,
        "trim_start": 0,
        "trim_end": 0,
        "candidate_classes": None,
        "video_weight": 0.0,
    }
    recipe = Recipe(name="a", data=TINY.data, models=TINY.models)
    assert (recipe.prediction, recipe.search) == (PredictionConfig(), SearchConfig())
    assert (recipe.bootstrap_rounds, recipe.seed, recipe.second_stage) == (1000, 0, False)
    training = TINY.models[0].pretraining
    model = ModelRecipe(key="bert_l2h12", title="A", pretraining=training, finetuning=training)
    assert (model.shifts, model.overrides, model.preset_weight) == ((-1, 0, 1), {}, 1.0)
    assert model.architecture == "bert_l2h12"


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("batch_size", 1, 0),
        ("top_k", 1, 0),
        ("top_k", 100_000, 100_001),
        ("trim_start", 0, -1),
        ("trim_end", 0, -1),
        ("candidate_classes", 1, 0),
        ("video_weight", 0.99, 1.0),
        ("video_weight", 0.0, -0.1),
        ("tta_w0", 1e-9, 0.0),
        ("edges", "wrap", "roll"),
        ("precision", "bfloat16", "float16"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(field: str, good: Any, bad: Any) -> None:
    assert getattr(PredictionConfig(**{field: good}), field) == good
    with pytest.raises(ConfigError, match=rf"prediction\.{field} = "):
        PredictionConfig(**{field: bad})


def test_models_are_named_once_and_found_by_key() -> None:
    assert TINY.model_keys == ("one", "two")
    assert TINY.model("two").key == "two"
    assert TINY.with_models(("two",)).models == TINY.models[1:]
    with pytest.raises(ConfigError, match="unknown model 'three'; recipe 'tiny' has one, two"):
        TINY.model("three")
    for models in ((), (TINY.models[0], TINY.models[0])):
        with pytest.raises(ConfigError, match="give at least one, each key once"):
            replace(TINY, models=models)
    assert replace(TINY, bootstrap_rounds=1).bootstrap_rounds == 1
    with pytest.raises(ConfigError, match="bootstrap_rounds = 0"):
        replace(TINY, bootstrap_rounds=0)


@pytest.mark.parametrize("shifts", [(), (0, 0), (0, 3)])
def test_shifts_are_distinct_and_known(shifts: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="choose distinct shifts from"):
        tiny_model("one", shifts)
    assert tiny_model("one", (-2, 2)).shifts == (-2, 2)
