"""Variants of a model: which rows they make, what they start from, and what they are refused for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.variants import with_variant

FASTER = {"finetuning": {"learning_rate": 0.005}}


def test_a_variant_is_one_more_model() -> None:
    recipe = tiny_recipe()
    wider = with_variant(recipe, "one", "fast", FASTER)
    assert wider.models[:-1] == recipe.models
    row = wider.model("one_fast")
    assert (row.title, row.architecture, row.shifts) == ("Tiny one, fast", "bert_mean_l2h12", (0, 1))
    assert row.finetuning == replace(recipe.model("one").finetuning, learning_rate=0.005)
    assert replace(wider, models=recipe.models) == recipe


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (FASTER, "one"),
        ({"overrides": {"dropout": 0.3}}, "one"),
        ({"overrides": {"intermediate_size": 16}}, ""),
        ({"pretraining": {"num_steps": 5}}, ""),
    ],
)
def test_it_starts_from_the_pre_trained_weights_that_fit_it(settings: dict[str, Any], start: str) -> None:
    assert with_variant(tiny_recipe(), "one", "other", settings).model("one_other").starts_from == start


def test_a_variant_of_a_variant_starts_from_the_same_weights() -> None:
    wider = with_variant(tiny_recipe(), "one", "fast", FASTER)
    assert with_variant(wider, "one_fast", "long", {"finetuning": {"num_steps": 9}}).models[-1].starts_from == "one"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning": {"learning_rate": -1}}, r"learning_rate = -1.0: must be above zero"),
        ({"finetuning": {"schedule": "linear"}}, r"schedule = 'linear': choose one of 'staircase', 'cosine'"),
        ({"finetuning": {"steps": 3}}, r"unknown field 'models.one_x.finetuning.steps'; known: num_steps, "),
        ({"overrides": {"drop": 0.1}}, r"has no option 'drop'; its options are .*dropout"),
        ({"shifts": [0]}, r"sets 'shifts'; a variant may set pretraining, finetuning, overrides"),
    ],
)
def test_it_is_refused_as_a_recipe_is(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_variant(tiny_recipe(), "one", "x", settings)


@pytest.mark.parametrize("settings", [{"finetuning": {"learning_rate": -1}}, {"finetuning": {"steps": 3}}])
def test_in_the_same_words_as_a_recipe(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    values = {"base": "challenge", "models": {"bert_l2h12_x": {"base": "bert_l2h12", **settings}}}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as of_recipe:
        load_recipe(path)
    with pytest.raises(ConfigError) as of_variant:
        with_variant(load_recipe("challenge"), "bert_l2h12", "x", settings)
    assert str(of_recipe.value) == f"recipe {str(path)!r}: {of_variant.value}"


def test_names() -> None:
    for name in ("a-b", "a b"):
        with pytest.raises(ConfigError, match="use letters, digits and underscores"):
            with_variant(tiny_recipe(), "one", name, FASTER)
    with pytest.raises(ConfigError, match="unknown model 'three'"):
        with_variant(tiny_recipe(), "three", "fast", FASTER)
    taken = tiny_recipe(models=(tiny_model("one", (0,)), tiny_model("one_fast", (0,))))
    with pytest.raises(ConfigError, match="has a model 'one_fast'; choose another name"):
        with_variant(taken, "one", "fast", FASTER)


def test_what_a_recipe_may_start_from() -> None:
    one = tiny_model("one", (0,))
    first, second = (replace(one, key=key, starts_from=start) for key, start in (("a", "one"), ("b", "a")))
    with pytest.raises(ConfigError, match="a: starts_from = 'one': name a model that comes before it"):
        tiny_recipe(models=(first, one))
    with pytest.raises(ConfigError, match="b: starts_from = 'a': that starts from 'one' itself"):
        tiny_recipe(models=(one, first, second))
    longer = replace(first, pretraining=replace(one.pretraining, num_steps=9))
    with pytest.raises(ConfigError, match="so its own pretraining is not used"):
        tiny_recipe(models=(one, longer))
