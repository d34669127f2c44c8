"""An asset is declared once: what the graph, the plan and the table know of it follows from its entry."""

from dataclasses import replace

import dagster as dg
import pytest

from orchestration.hints import MACHINES, hints_for
from orchestration.jobs import job_of
from orchestration.plan import groups, required_nodes, steps
from orchestration.status import column_of
from tests.tiny import tiny_recipe
from yt8m_assets.assets.shell import asset_options, untagged
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


def test_an_entry_is_all_that_a_machine_and_a_job_need(recipe: Recipe, toy: str) -> None:
    elsewhere = dict.fromkeys(("pretraining", "segments", "test"), ("gs://bucket/*.tfrecord",))
    data = replace(recipe.data, simulation=None, segment_classes_uri="gs://bucket/classes.csv", **elsewhere)
    assert hints_for(replace(recipe, data=data))[toy] == MACHINES["large"]
    assert hints_for(recipe)[toy] == MACHINES["small"]
    assert job_of([toy]) == "rank_models"


def test_an_entry_is_all_that_dagster_is_told_beside_the_body(recipe: Recipe, toy: str) -> None:
    @dg.asset(**asset_options(recipe, untagged, toy))
    def calibration() -> None: ...

    spec = calibration.get_asset_spec()
    assert [dep.asset_key.to_user_string() for dep in spec.deps] == ["oof_ranking", "holdout_ratings"]
    assert (spec.group_name, spec.kinds) == ("predictions", {"csv"})
    assert str(spec.code_version).startswith("7-")
    assert calibration.partitions_def == dg.StaticPartitionsDefinition(list(recipe.model_keys))


def test_assets_of_a_new_heading_get_a_job_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Asset(group="reports", parents=("submission",), kinds=frozenset({"html"}))
    monkeypatch.setitem(ASSETS, "card", entry)
    assert job_of(["card"]) == "make_card"


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
