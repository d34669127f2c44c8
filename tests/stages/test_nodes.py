"""An asset is declared once: what the graph, the plan and the table know of it follows from its entry."""

import pytest

from orchestration.plan import groups, required_nodes, steps
from orchestration.status import column_of
from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages import nodes as graph
from yt8m_assets.stages.nodes import ASSETS, Asset, Node, config_slice, nodes, parents


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """An asset with one entry: a calibration of each model's ranking."""
    entry = Asset(
        group="predictions",
        axes=("model",),
        parents=("oof_ranking", "holdout_ratings"),
        config=("prediction.top_k", "model.title"),
        code_version="7",
        kinds=frozenset({"csv"}),
        machine="large",
        checks=("coverage",),
        column="calibrated",
    )
    monkeypatch.setitem(ASSETS, "calibration", entry)
    return "calibration"


def test_an_entry_is_all_that_lineage_needs(recipe: Recipe, toy: str) -> None:
    key = recipe.model_keys[-1]
    node = Node(toy, key)
    assert nodes(recipe, toy) == tuple(Node(toy, key) for key in recipe.model_keys)
    assert parents(recipe, node) == (Node("oof_ranking", key), Node("holdout_ratings"))
    assert config_slice(recipe, node) == {"top_k": recipe.prediction.top_k, "title": recipe.model(key).title}
    assert node.code_version == "7"


def test_an_entry_is_all_that_the_plan_and_the_table_need(recipe: Recipe, toy: str) -> None:
    required = required_nodes(recipe, until=toy)
    assert set(nodes(recipe, toy)) < set(required)
    assert Node("oof_ranking", recipe.model_keys[0]) in required
    assert not [node for node in required if node.asset in ("test_ranking", "ensemble_weights")]
    last = groups(recipe, required)[-1]
    assert [step.assets for step in steps(recipe, last)] == [(toy,)]
    assert column_of(required[-1]) == "calibrated"


def test_an_entry_stands_after_all_that_it_is_made_from() -> None:
    order = list(ASSETS)
    for asset, entry in ASSETS.items():
        assert all(order.index(parent) < order.index(asset) for parent in entry.parents), asset


def test_one_entry_for_all_models_needs_every_required_cell(recipe: Recipe) -> None:
    found = [node for node in parents(recipe, Node("leaderboard")) if node.asset == "oof_predictions"]
    assert found == [Node("oof_predictions", row.key, shift) for row in recipe.models for shift in sorted(row.shifts)]


def test_a_cell_of_a_shift_that_no_ranking_fuses_has_parents_too(recipe: Recipe) -> None:
    model = recipe.models[0]
    other = next(shift for shift in (-2, -1, 0, 1, 2) if shift not in model.shifts)
    assert parents(recipe, Node("oof_predictions", model.key, other))[0] == Node("finetuned_model", model.key)


def test_an_unknown_model_is_named(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="unknown model 'nosuch'"):
        graph.parents(recipe, Node("finetuned_model", "nosuch"))
