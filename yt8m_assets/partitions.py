"""The partition axes of the graph: which models, and which window shifts, in the order of the recipe."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import dagster as dg

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.lineage import Node, nodes

MODEL = "model"
"""Name of the model dimension."""
SHIFT = "shift"
"""Name of the shift dimension (seconds)."""


@contextmanager
def beta_accepted() -> Iterator[None]:
    """Use Dagster's single-run backfills, partition mappings and pools without its notices that they are beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield


def model_partitions(recipe: Recipe) -> dg.StaticPartitionsDefinition:
    """One partition per model of the recipe."""
    return dg.StaticPartitionsDefinition(list(recipe.model_keys))


def cell_partitions(recipe: Recipe) -> dg.MultiPartitionsDefinition:
    """The grid of models and shifts; its keys read `bert_l2h12|-1`."""
    shifts = dg.StaticPartitionsDefinition([str(shift) for shift in SHIFTS])
    return dg.MultiPartitionsDefinition({MODEL: model_partitions(recipe), SHIFT: shifts})


def partitions_of(recipe: Recipe, asset: str) -> dg.PartitionsDefinition | None:
    """The partitions of an asset; None for one without."""
    node = nodes(recipe, asset)[0]
    if node.model is None:
        return None
    return model_partitions(recipe) if node.shift is None else cell_partitions(recipe)


def by_model() -> dg.MultiToSingleDimensionPartitionMapping:
    """Maps a model to its cells and a cell to its model.

    A ranking needs only the shifts of its recipe row. No mapping that Dagster's server takes over from the definitions
    (it takes its own classes only) can say so between a grid and one of its sides.
    """
    return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name=MODEL)


def backfill_policy(name: str) -> dg.BackfillPolicy:
    """The policy of a name: `single_run`, or anything else for a run per partition.

    A single-run backfill of a rectangle is one run for each key of its shorter side: that is how Dagster describes it.
    """
    return dg.BackfillPolicy.single_run() if name == "single_run" else dg.BackfillPolicy.multi_run(1)


def cell_key(model: str, shift: int) -> str:
    """The partition key of a cell."""
    return f"{model}|{shift}"


def required_cells(recipe: Recipe) -> list[str]:
    """The partition keys of the cells that the recipe's rankings fuse."""
    return [cell_key(str(node.model), int(node.shift or 0)) for node in nodes(recipe, "oof_predictions")]


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


def node_of(asset: str, key: str | None) -> Node:
    """The node of an asset's partition."""
    if key is None:
        return Node(asset)
    return Node(asset, *parse_cell(key)) if "|" in key else Node(asset, key)


def nodes_of(asset: str, keys: Iterable[str | None]) -> list[Node]:
    """The nodes of several partitions of an asset."""
    return [node_of(asset, key) for key in keys]
