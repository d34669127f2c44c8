"""What a pass over the graph must do: nodes in lineage order, in groups that one Dagster run can take."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from yt8m_assets.errors import ConfigError
from yt8m_assets.partitions import CELLS_A_RUN, OPTIONAL, asset_of, keys_of, parse_cell, partition_key
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, all_nodes, nodes, parents, with_ancestors


def together() -> list[tuple[str, ...]]:
    """The assets in lineage order, those with the same heading and partitions side by side."""
    return [tuple(run) for _, run in groupby(ASSETS, key=lambda asset: (ASSETS[asset].group, ASSETS[asset].axes))]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One Dagster run: some assets over one partition, a contiguous range of partitions, or none."""

    assets: tuple[str, ...]
    """Assets that share partitions, in lineage order."""
    first: str | None = None
    """First partition key."""
    last: str | None = None
    """Last partition key."""

    @property
    def title(self) -> str:
        """One line for people."""
        where = (
            "" if self.first is None else f"  {self.first}" + (f" ... {self.last}" if self.last != self.first else "")
        )
        return ", ".join(self.assets) + where


def required_nodes(recipe: Recipe, models: Sequence[str] = (), until: str | None = None) -> list[Node]:
    """The nodes to be materialised, in lineage order.

    `models` limits it to those models, and leaves out what needs all of them; `until` names the last asset wanted.
    Raises ConfigError naming the known models or assets.
    """
    for key in models:
        recipe.model(key)
    if until is not None and until not in ASSETS:
        raise ConfigError(f"unknown asset {until!r}; known: {', '.join(ASSETS)}")
    pending = [node for asset in ASSETS if until in (None, asset) for node in nodes(recipe, asset)]
    if models:
        pending = [node for node in pending if node.model in models or is_data(node)]
        if not pending:
            raise ConfigError(f"{until} is made from all models; leave out the choice of models")
    wanted = set(with_ancestors(recipe, pending))
    return [node for node in all_nodes(recipe) if node in wanted]


def is_data(node: Node) -> bool:
    """Whether the node says what the data is."""
    return ASSETS[node.asset].group == "data"


def trains(step: Step) -> bool:
    """Whether a step trains a model."""
    return any(asset in ASSETS and ASSETS[asset].training for asset in step.assets)


def groups(recipe: Recipe, required: Sequence[Node], backfill: str = "single_run") -> list[list[Node]]:
    """The required nodes in the order in which they are made; a group's nodes share their kind of partitions.

    `backfill` "per_partition": models are trained one after another.
    """
    found = []
    for assets in together():
        apart = ASSETS[assets[0]].training and backfill == "per_partition"
        split = [[key] for key in recipe.model_keys] if apart else [recipe.model_keys]
        found += [
            [node for node in required if node.asset in assets and (node.model is None or node.model in keys)]
            for keys in split
        ]
    return [group for group in found if group]


def with_dependents(recipe: Recipe, group: Sequence[Node], outdated: set[Node]) -> set[Node]:
    """The outdated nodes of a group, and those of the group that are made from them."""
    result = set(outdated)
    for node in group:
        if any(parent in result for parent in parents(recipe, node)):
            result.add(node)
    return result


def steps(recipe: Recipe, todo: Sequence[Node], idle: Collection[Node] = ()) -> list[Step]:
    """The runs that make some nodes of one group: as few as contiguous ranges of partitions allow.

    `idle` nodes are up to date; a run of trainings may take them in, which costs nothing.
    """
    if not todo:
        return []
    if todo[0].model is None:
        return [Step(assets=tuple(node.asset for node in todo))]
    if ASSETS[todo[0].asset].training:
        return _trainings(recipe, todo, idle)
    wanted: dict[str, set[str]] = {}
    for node in todo:
        wanted.setdefault(asset_of(recipe, node), set()).add(str(partition_key(node)))
    by_assets: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for asset in wanted for key in keys_of(recipe, asset) or ()):
        assets = tuple(asset for asset in (*ASSETS, *OPTIONAL.values()) if key in wanted.get(asset, ()))
        if assets:
            by_assets.setdefault(assets, []).append(key)
    return [
        Step(assets=assets, first=run[0], last=run[-1])
        for assets, keys in by_assets.items()
        for stretch in _contiguous(keys, keys_of(recipe, assets[0]) or ())
        for run in ([stretch] if todo[0].shift is None else _runs_of_cells(stretch))
    ]


def _trainings(recipe: Recipe, todo: Sequence[Node], idle: Collection[Node]) -> list[Step]:
    """Runs of models that are trained together: what lies between two of them may be up to date."""
    assets = tuple(asset for asset in ASSETS if any(node.asset == asset for node in todo))
    wanted = {node.model for node in todo}
    stretches: list[list[str]] = [[]]
    for key in recipe.model_keys:
        if key in wanted:
            stretches[-1].append(key)
        elif not all(Node(asset, key) in idle for asset in assets):
            stretches.append([])
    return [Step(assets=assets, first=keys[0], last=keys[-1]) for keys in stretches if keys]


def _runs_of_cells(keys: Sequence[str]) -> list[list[str]]:
    """Runs of at most CELLS_A_RUN cells that keep a model's together: scored in two batches, their last bits differ."""
    runs: list[list[str]] = []
    for _, cells in groupby(keys, lambda key: parse_cell(key)[0]):
        of_model = list(cells)
        if runs and len(runs[-1]) + len(of_model) <= CELLS_A_RUN:
            runs[-1] += of_model
        else:
            runs.append(of_model)
    return runs


def _contiguous(keys: Sequence[str], order: Sequence[str]) -> list[list[str]]:
    """Split keys into stretches that are neighbours in `order`."""
    stretches: list[list[str]] = []
    for key in keys:
        if stretches and order.index(key) == order.index(stretches[-1][-1]) + 1:
            stretches[-1].append(key)
        else:
            stretches.append([key])
    return stretches
