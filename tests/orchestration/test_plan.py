"""The driver's plan: which nodes, in which order, in which runs."""

import itertools

import dagster as dg
import pytest

from orchestration.plan import Step, groups, required_nodes, steps, with_dependents
from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.partitions import node_of, partitions_of
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, nodes, parents


def covered(recipe: Recipe, step: Step) -> set[Node]:
    """The nodes that Dagster materialises for a step."""
    if step.first is None:
        return {Node(asset) for asset in step.assets}
    found: set[Node] = set()
    for asset in step.assets:
        partitions = partitions_of(recipe, asset)
        assert partitions is not None
        keys = partitions.get_partition_keys_in_range(dg.PartitionKeyRange(step.first, str(step.last)))
        found |= {node_of(asset, key) for key in keys}
    return found


@pytest.mark.parametrize("name", ["challenge", "beyond", "tiny"])
def test_runs_cover_what_is_required_once_and_nothing_else(name: str) -> None:
    recipe = tiny_recipe() if name == "tiny" else load_recipe(name)
    required = required_nodes(recipe)
    assert set(required) == {node for asset in ASSETS for node in nodes(recipe, asset)}
    made: list[Node] = []
    for group in groups(recipe, required):
        for step in steps(recipe, group):
            nodes_of_step = covered(recipe, step)
            for node in nodes_of_step:
                assert all(parent in made or parent in nodes_of_step for parent in parents(recipe, node))
            made += nodes_of_step
    assert sorted(made, key=str) == sorted(required, key=str)


def test_nine_models_take_seven_runs_and_no_run_holds_too_many_cells() -> None:
    recipe = load_recipe("challenge")
    runs = [step for group in groups(recipe, required_nodes(recipe)) for step in steps(recipe, group)]
    assert len(runs) == 1 + 1 + 3 + 1 + 1
    cells = [step for step in runs if step.assets == ("oof_predictions", "test_predictions")]
    assert [len(covered(recipe, step)) for step in cells] == [2 * 9, 2 * 10, 2 * 10]
    models = [{node.model for node in covered(recipe, step)} for step in cells]
    assert sum(map(len, models)) == 9, "a model's cells are scored in one run: in two, their last bits would differ"


def test_models_are_trained_in_one_run_past_what_is_up_to_date_and_one_by_one_where_asked() -> None:
    recipe = load_recipe("challenge")
    keys, training = recipe.model_keys, ("pretrained_model", "finetuned_model")
    todo = [Node(asset, key) for asset in training for key in (keys[1], keys[4])]
    idle = {Node(asset, key) for asset in training for key in keys} - set(todo)
    assert steps(recipe, todo, idle) == [Step(assets=training, first=keys[1], last=keys[4])]
    idle.remove(Node("finetuned_model", keys[2]))
    runs = steps(recipe, todo, idle)
    assert [(step.first, step.last) for step in runs] == [(keys[1], keys[1]), (keys[4], keys[4])]
    runs = steps(recipe, [*todo, Node("finetuned_model", keys[0])], idle)
    assert [(step.first, step.last) for step in runs] == [(keys[0], keys[1]), (keys[4], keys[4])]
    one_by_one = groups(recipe, required_nodes(recipe, until="finetuned_model"), "per_partition")
    assert [{node.model for node in group} for group in one_by_one] == [{None}, *({key} for key in keys)]


def test_a_shift_of_all_models_is_one_run() -> None:
    recipe = load_recipe("challenge")
    cells = [Node("test_predictions", key, -2) for key in recipe.model_keys if -2 not in recipe.model(key).shifts]
    (run,) = steps(recipe, cells)
    assert run.assets == ("test_optional_predictions",)
    assert covered(recipe, run) == set(cells)


def test_any_choice_of_cells_becomes_ranges() -> None:
    recipe = tiny_recipe()
    cells = [Node(asset, key, shift) for asset in ("oof_predictions", "test_predictions")
             for key in recipe.model_keys for shift in (-2, 0, 1)]  # fmt: skip
    for count in range(1, 5):
        for chosen in itertools.combinations(cells, count):
            made = [node for step in steps(recipe, chosen) for node in covered(recipe, step)]
            assert sorted(made) == sorted(chosen)


def test_choice_of_models_leaves_out_what_needs_all_of_them() -> None:
    recipe = tiny_recipe()
    required = required_nodes(recipe, models=("two",))
    assert {node.model for node in required} == {None, "two"}
    assert not {node.asset for node in required} & {"ensemble_weights", "submission", "leaderboard"}
    assert Node("test_ranking", "two") in required


def test_until_takes_the_ancestors_only() -> None:
    required = required_nodes(tiny_recipe(), until="finetuned_model")
    assert {node.asset for node in required} == {
        "pretraining_shards", "segment_shards", "holdout_ratings", "pretrained_model", "finetuned_model",
    }  # fmt: skip


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="one, two"):
        required_nodes(tiny_recipe(), models=("three",))
    with pytest.raises(ConfigError, match="leaderboard"):
        required_nodes(tiny_recipe(), until="fame")
    with pytest.raises(ConfigError, match="made from all models"):
        required_nodes(tiny_recipe(), models=("one",), until="submission")


def test_what_is_made_from_something_outdated_is_redone() -> None:
    recipe = tiny_recipe()
    group = groups(recipe, required_nodes(recipe))[1]
    assert [node.asset for node in group] == ["pretrained_model"] * 2 + ["finetuned_model"] * 2
    assert with_dependents(recipe, group, {group[0]}) == {group[0], group[2]}
    assert with_dependents(recipe, group, {group[3]}) == {group[3]}
    assert with_dependents(recipe, group, set()) == set()
