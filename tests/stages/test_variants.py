"""Variants in the store: kept by name, trained beside the recipe's models, never a change of what is the recipe's."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.graph import QUIET, make_lists, open_store
from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError, MissingArtifactError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.recipes.variants import with_variant
from yt8m_assets.reports.variants import compare_variants, comparison_markdown
from yt8m_assets.stages.collection import find_dropped
from yt8m_assets.stages.lineage import Lineage, current_manifest
from yt8m_assets.stages.nodes import Node, all_nodes
from yt8m_assets.stages.training import finetune, pretrain, train_models
from yt8m_assets.stages.variants import (
    Variant,
    forget_variant,
    keep_variant,
    kept_variants,
    train_variant,
    with_kept,
)
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.soundness import content_files
from yt8m_assets.tracking import NullTracking

OPTIONS: dict[str, Any] = {"tracking": NullTracking(), "progress": QUIET, "run_tags": {}}
FAST = Variant(base="one", name="fast", settings={"finetuning": {"learning_rate": 0.005}})


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Recipe, ArtifactStore]:
    """The recipe, and a store with its lists and one pre-trained model."""
    recipe, store = tiny_recipe(), open_store(tmp_path)
    make_lists(recipe, store)
    pretrain(recipe, store, "one", **OPTIONS)
    return recipe, store


def test_a_name_means_one_thing(tmp_path: Path) -> None:
    recipe, store = tiny_recipe(), open_store(tmp_path)
    assert keep_variant(recipe, store, FAST) == FAST
    assert keep_variant(recipe, store, Variant(base="one", name="fast", settings={})) == FAST
    with pytest.raises(ConfigError, match=r'sets \{"finetuning":\{"learning_rate":0.005\}\}: choose another name'):
        keep_variant(recipe, store, Variant(base="one", name="fast", settings={"overrides": {"dropout": 0.1}}))
    for same in ({}, {"finetuning": {"learning_rate": 1e-3}}):
        with pytest.raises(ConfigError, match="changes nothing; give a setting"):
            keep_variant(recipe, store, Variant(base="one", name="new", settings=same))
    assert kept_variants(store) == kept_variants(store, "one") == {"one_fast": FAST}
    assert kept_variants(store, "two") == {}
    assert with_kept(recipe, store, ["one", "two"]) is recipe
    assert with_kept(recipe, store, ["one_fast"]) == FAST.add_to(recipe)


def test_what_cannot_be_is_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ConfigError, match="must be above zero"):
        keep_variant(tiny_recipe(), store, Variant(base="one", name="x", settings={"finetuning": {"batch_size": 0}}))
    assert kept_variants(store) == {}


def test_it_is_trained_beside_the_recipes_own(trained: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = trained
    before = {node: Lineage(recipe, store).current(node) for node in all_nodes(recipe)}
    model, ranking = train_variant(recipe, store, keep_variant(recipe, store, FAST), **OPTIONS)
    assert model.manifest.config["training"]["learning_rate"] == 0.005
    assert (model.manifest.key, ranking.manifest.key) == ("finetuned_model/one_fast", "oof_ranking/one_fast")
    assert {node: Lineage(recipe, store).current(node) for node in before} == before
    again, _ = train_variant(recipe, store, FAST, **OPTIONS)
    assert again.reused


def test_its_pre_trained_weights_are_the_models_own(trained: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = trained
    wider = FAST.add_to(recipe)
    with pytest.raises(MissingArtifactError, match="pretrained_model/two: materialise first"):
        pretrain(with_variant(recipe, "two", "fast", FAST.settings), store, "two_fast", **OPTIONS)
    results = dict(train_models(wider, store, "pretrained_model", ["one_fast", "one"], **OPTIONS))
    own, adopted = results["one"].manifest, results["one_fast"].manifest
    assert adopted.digest == own.digest
    assert sorted(adopted.files) == sorted(content_files(own))  # not the record of the run that trained it
    assert adopted.parents == {"pretrained_model/one": own.digest}
    assert adopted.metadata["weights_of"] == "pretrained_model/one"
    assert pretrain(wider, store, "one_fast", **OPTIONS).reused
    longer = with_variant(recipe, "one", "long", {"pretraining": {"num_steps": 4}})
    assert pretrain(longer, store, "one_long", **OPTIONS).manifest.digest != own.digest


def test_settings_are_all_that_differs(trained: tuple[Recipe, ArtifactStore]) -> None:
    """With settings that compute the same a variant is bit for bit the recipe's own model."""
    recipe, store = trained
    own = finetune(recipe, store, "one", **OPTIONS).manifest
    same = Variant(base="one", name="same", settings={"finetuning": {"log_every": 2}})
    assert train_variant(recipe, store, keep_variant(recipe, store, same), **OPTIONS)[0].manifest.digest == own.digest
    assert train_variant(recipe, store, keep_variant(recipe, store, FAST), **OPTIONS)[0].manifest.digest != own.digest


def test_a_recipe_that_counts_it_in_finds_it_made(trained: tuple[Recipe, ArtifactStore], tmp_path: Path) -> None:
    from yt8m_assets.recipes import load_recipe

    recipe, store = trained
    model, ranking = train_variant(recipe, store, keep_variant(recipe, store, FAST), **OPTIONS)
    (tmp_path / "tiny.py").write_text("from tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n")
    values = {"base": "tiny.py", "models": {"one_fast": FAST.as_model(recipe)}}
    (tmp_path / "mine.json").write_text(json.dumps(values))
    found = load_recipe(tmp_path / "mine.json")
    assert found.models[-1] == FAST.add_to(recipe).models[-1]
    for result in (model, ranking):
        assert current_manifest(found, store, Node(*result.manifest.key.split("/"))) == result.manifest


def test_the_table_compares_it(ranked_graph: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = ranked_graph
    keep_variant(recipe, store, FAST)
    rows = compare_variants(recipe, store, "one")
    assert [(row["key"], row["map"] is None) for row in rows] == [("one", False), ("one_fast", True)]
    wider = Variant(base="one", name="wide", settings={"overrides": {"intermediate_size": 16}})
    train_variant(recipe, store, keep_variant(recipe, store, wider), **OPTIONS)
    own, _, wide = compare_variants(recipe, store, "one")
    assert wide["gain"]["value"] == pytest.approx(wide["map"] - own["map"])
    assert wide["gain"]["low"] <= wide["gain"]["value"] <= wide["gain"]["high"]
    lines = comparison_markdown([own, wide]).splitlines()
    assert "the recipe's" in lines[2]
    assert f"| wide | overrides.intermediate_size = 16 | 3 | {wide['map_in_training']:.4f} |" in lines[3]


def test_gc_leaves_it_while_it_is_kept(trained: tuple[Recipe, ArtifactStore]) -> None:
    recipe, store = trained
    train_variant(recipe, store, keep_variant(recipe, store, FAST), **OPTIONS)
    assert find_dropped([recipe], store) == []
    with pytest.raises(ConfigError, match="unknown variant 'slow' of one; kept: fast"):
        forget_variant(store, "one", "slow")
    forget_variant(store, "one", "fast")
    assert {one.key.split("/")[0] for one in find_dropped([recipe], store)} == {
        *("pretrained_model", "finetuned_model", "oof_predictions", "oof_ranking"),
    }
