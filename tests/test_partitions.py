"""Partition keys, their order, and the nodes they name."""

import dagster as dg
import pytest

from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.partitions import cell_partitions, model_partitions, node_of, parse_cell, partition_key
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.lineage import ASSETS, nodes


def test_axes_follow_the_recipe() -> None:
    recipe = load_recipe("challenge")
    assert tuple(model_partitions(recipe).get_partition_keys()) == recipe.model_keys
    keys = cell_partitions(recipe).get_partition_keys()
    assert len(keys) == 9 * 5
    assert list(keys[:5]) == [f"gated_netvlad_h1024c16|{shift}" for shift in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("asset", ASSETS)
def test_nodes_and_partition_keys_are_inverse(asset: str) -> None:
    recipe = tiny_recipe()
    for node in nodes(recipe, asset):
        key = partition_key(node)
        assert node_of(asset, key) == node
        if node.shift is not None:
            assert cell_partitions(recipe).has_partition_key(
                dg.MultiPartitionKey({"model": str(node.model), "shift": str(node.shift)})
            )


@pytest.mark.parametrize("key", ["one", "one|3", "one|", "one|x", "one|+1", "one|-2|0", ""])
def test_a_key_that_is_no_cell_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="MODEL"):
        parse_cell(key)
