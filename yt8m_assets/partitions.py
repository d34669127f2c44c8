"""The partition axes of the graph: which models, and which window shifts, in the order of the recipe."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import dagster as dg

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, nodes

OPTIONAL: Mapping[str, str] = {name: asset.optional for name, asset in ASSETS.items() if asset.optional}
"""Asset of predictions -> the asset that holds its cells of shifts that no ranking fuses, to try a wider augmentation.

Their artifacts are cells as all others (`oof_predictions/bert_l2h12/shift+2`); only Dagster has two assets for them, so
that a graph with all that its recipe needs is complete.
"""
_BASES = {optional: asset for asset, optional in OPTIONAL.items()}
CELLS_A_RUN = 10
"""Cells that one run scores at most: each holds its best segments in memory, 1.2 GB of them on the real test data."""


@contextmanager
def beta_accepted() -> Iterator[None]:
    """Use Dagster's single-run backfills, partition mappings and pools without its notices that they are beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield


def required_cells(recipe: Recipe) -> list[str]:
    """The partition keys of the cells that the recipe's rankings fuse, model by model; such as `bert_l2h12|-1`."""
    return [cell_key(model.key, shift) for model in recipe.models for shift in sorted(model.shifts)]


def optional_cells(recipe: Recipe) -> list[str]:
    """The partition keys of all other cells, shift by shift: a shift of all models is a range of neighbours."""
    required = set(required_cells(recipe))
    every = (cell_key(model, shift) for shift in SHIFTS for model in recipe.model_keys)
    return [key for key in every if key not in required]


def keys_of(recipe: Recipe, asset: str) -> list[str] | None:
    """The partition keys of an asset, in order; None for one without."""
    if asset in _BASES:
        return optional_cells(recipe)
    return [str(partition_key(node)) for node in nodes(recipe, asset)] if ASSETS[asset].axes else None


def partitions_of(recipe: Recipe, asset: str) -> dg.StaticPartitionsDefinition | None:
    """The partitions of an asset; None for one without."""
    keys = keys_of(recipe, asset)
    return None if keys is None else dg.StaticPartitionsDefinition(keys)


def model_to_cells(recipe: Recipe, asset: str) -> dg.StaticPartitionMapping:
    """Maps a model to those of its cells that an asset of predictions has."""
    cells: dict[str, list[str]] = {key: [] for key in recipe.model_keys}
    for key in keys_of(recipe, asset) or ():
        cells[parse_cell(key)[0]].append(key)
    return dg.StaticPartitionMapping(cells)


def cells_to_model(recipe: Recipe, asset: str) -> dg.StaticPartitionMapping:
    """Maps the cells of an asset of predictions to their models."""
    return dg.StaticPartitionMapping({key: parse_cell(key)[0] for key in keys_of(recipe, asset) or ()})


def deps_of(recipe: Recipe, asset: str) -> list[dg.AssetDep]:
    """What an asset is made from, and which of its partitions come from which."""
    own, deps = ASSETS[base_asset(asset)].axes, []
    for parent in ASSETS[base_asset(asset)].parents:
        if not nodes(recipe, parent):
            continue
        mapping = None
        if (own, ASSETS[parent].axes) == (("model", "shift"), ("model",)):
            mapping = model_to_cells(recipe, asset)
        elif (own, ASSETS[parent].axes) == (("model",), ("model", "shift")):
            mapping = cells_to_model(recipe, parent)
        deps.append(dg.AssetDep(parent, partition_mapping=mapping))
    return deps


def backfill_policy(name: str, num_cells: int = 0) -> dg.BackfillPolicy:
    """The policy of a name: `single_run`, cut where a run cannot take so many cells, or else a run per partition."""
    if name != "single_run":
        return dg.BackfillPolicy.multi_run(1)
    return dg.BackfillPolicy.multi_run(CELLS_A_RUN) if num_cells > CELLS_A_RUN else dg.BackfillPolicy.single_run()


def cell_key(model: str, shift: int) -> str:
    """The partition key of a cell."""
    return f"{model}|{shift}"


def asset_nodes(recipe: Recipe, asset: str) -> list[Node]:
    """The nodes of one of Dagster's assets, in the order of its partitions."""
    keys = keys_of(recipe, asset)
    return [Node(asset)] if keys is None else nodes_of(asset, keys)


def every_asset(recipe: Recipe) -> list[str]:
    """The names of Dagster's assets, in lineage order; the optional ones last, where there are such cells."""
    return [asset for asset in (*ASSETS, *_BASES) if keys_of(recipe, asset) != []]


def every_node(recipe: Recipe) -> list[Node]:
    """The nodes of all of Dagster's assets."""
    return [node for asset in every_asset(recipe) for node in asset_nodes(recipe, asset)]


def parse_cell(key: str) -> tuple[str, int]:
    """Model and shift of a cell's partition key. Raises ConfigError for anything else."""
    model, separator, shift = key.partition("|")
    if not separator or shift not in {str(value) for value in SHIFTS}:
        raise ConfigError(f"partition {key!r}: expected MODEL|SHIFT with a shift among {SHIFTS}")
    return model, int(shift)


def partition_key(node: Node) -> str | None:
    """The Dagster partition of a node; None for an asset without partitions."""
    if node.model is None:
        return None
    return node.model if node.shift is None else cell_key(node.model, node.shift)


def base_asset(asset: str) -> str:
    """The asset whose kind of artifact one of Dagster's assets makes: its own, but for the optional predictions."""
    return _BASES.get(asset, asset)


def asset_of(recipe: Recipe, node: Node) -> str:
    """Dagster's asset that makes a node."""
    if node.asset in OPTIONAL and node.shift is not None and node.shift not in recipe.model(str(node.model)).shifts:
        return OPTIONAL[node.asset]
    return node.asset


def node_of(asset: str, key: str | None) -> Node:
    """The node of the partition of one of Dagster's assets."""
    asset = base_asset(asset)
    if key is None:
        return Node(asset)
    return Node(asset, *parse_cell(key)) if "|" in key else Node(asset, key)


def nodes_of(asset: str, keys: Iterable[str | None]) -> list[Node]:
    """The nodes of several partitions of an asset."""
    return [node_of(asset, key) for key in keys]
