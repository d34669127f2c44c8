"""Partition keys, their order, and the nodes they name."""

import pytest

from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.partitions import (
    OPTIONAL,
    asset_of,
    keys_of,
    node_of,
    nodes_of,
    optional_cells,
    parse_cell,
    partition_key,
    partitions_of,
    required_cells,
)
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.nodes import ASSETS, nodes


def test_axes_follow_the_recipe() -> None:
    recipe = load_recipe("challenge")
    rankings = partitions_of(recipe, "oof_ranking")
    assert rankings is not None
    assert tuple(rankings.get_partition_keys()) == recipe.model_keys
    required, optional = required_cells(recipe), optional_cells(recipe)
    assert (len(required), len(optional)) == (29, 9 * 5 - 29)
    assert required[:4] == [*(f"gated_netvlad_h1024c16|{shift}" for shift in (-1, 0, 1)), "bert_l2h12|-1"]
    assert optional[:2] == ["gated_netvlad_h1024c16|-2", "bert_l2h12|-2"]  # a shift of all models: neighbours
    assert not set(required) & set(optional)


@pytest.mark.parametrize("asset", OPTIONAL)
def test_what_a_complete_graph_needs_and_the_rest_are_two_assets(asset: str) -> None:
    """The partitions of predictions are the cells that the recipe needs; every other one is in the optional asset."""
    recipe = tiny_recipe()
    assert nodes_of(asset, keys_of(recipe, asset) or []) == list(nodes(recipe, asset))
    optional = nodes_of(OPTIONAL[asset], keys_of(recipe, OPTIONAL[asset]) or [])
    assert {node.asset for node in optional} == {asset}
    assert {asset_of(recipe, node) for node in optional} == {OPTIONAL[asset]}
    assert {asset_of(recipe, node) for node in nodes(recipe, asset)} == {asset}
    assert len(optional) + len(nodes(recipe, asset)) == 2 * 5


@pytest.mark.parametrize("asset", ASSETS)
def test_nodes_and_partition_keys_are_inverse(asset: str) -> None:
    recipe = tiny_recipe()
    for node in nodes(recipe, asset):
        key = partition_key(node)
        assert node_of(asset, key) == node
        partitions = partitions_of(recipe, asset)
        assert key is None if partitions is None else partitions.has_partition_key(str(key))


@pytest.mark.parametrize("key", ["one", "one|3", "one|", "one|x", "one|+1", "one|-2|0", ""])
def test_a_key_that_is_no_cell_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="MODEL"):
        parse_cell(key)
