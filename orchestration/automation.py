"""When the assets that follow the models are asked for: what is out of date, in order, never half-new."""

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from orchestration.instance import Records
from orchestration.resources import store_of
from yt8m_assets.assets.results import recipe_mark
from yt8m_assets.assets.verdicts import failed_checks
from yt8m_assets.partitions import node_of
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node, parents
from yt8m_assets.storage import ArtifactStore

GROUPS = ("predictions", "optional", "ensemble")
"""Groups of the assets that automation brings up to date; a training is a person's decision."""


class OutOfDate(dg.AutomationCondition[dg.AssetKey]):
    """True for what is no longer what recipe, code, data and parents give, once all it is made from is."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self.recipe, self.store = recipe, store

    @property
    def name(self) -> str:
        """Names the recipe: after a change of it, what is out of date counts as newly so."""
        return f"out of date with recipe {recipe_mark(self.recipe)}, and all it is made from up to date"

    @property
    def description(self) -> str:
        """What pages show."""
        return self.name

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        """The partitions to be made, of those in question."""
        candidates = context.candidate_subset
        if candidates.is_empty:
            return dg.AutomationResult(context, candidates)
        view, asset = context.asset_graph_view, context.key.to_user_string()
        definition = view.asset_graph.get(context.key).partitions_def
        instance = view.instance
        if definition is None:
            wanted = list(self._due(instance, [Node(asset)]))
            return dg.AutomationResult(context, candidates if wanted else context.get_empty_subset())
        keys = {node_of(asset, key): key for key in candidates.expensively_compute_partition_keys()}
        due = {keys[node] for node in self._due(instance, keys)}
        return dg.AutomationResult(context, view.get_subset_from_partition_keys(context.key, definition, due))

    def _due(self, instance: dg.DagsterInstance, nodes: Iterable[Node]) -> Iterable[Node]:
        """Those that were made once, are out of date, and come from what is up to date and passed its checks."""
        lineage, records = Lineage(self.recipe, self.store), Records(instance, self.recipe)
        for node in nodes:
            above = parents(self.recipe, node)
            if (
                self.store.numbers(node.key)
                and not records.up_to_date(lineage, node)
                and all(lineage.current(parent) for parent in above)
                and not any(failed_checks(instance, above))
            ):
                yield node


def keep_up_to_date(recipe: Recipe, store: ArtifactStore) -> dg.AutomationCondition[Any]:
    """Ask once for what is out of date, when its turn has come, and not while it or its parents are being made.

    What was never materialised stays so: shifts that no ranking fuses are nobody's business.
    """
    due: dg.AutomationCondition[Any] = OutOfDate(recipe, store)
    busy = dg.AutomationCondition.in_progress() | dg.AutomationCondition.any_deps_in_progress()
    handled = dg.AutomationCondition.newly_requested() | dg.AutomationCondition.newly_updated()
    condition = due.newly_true().since(handled) & due & ~busy
    return condition.with_label("out of date, in order")


def automated(
    assets: Iterable[dg.AssetsDefinition], recipe: Recipe, resources: Mapping[str, Any]
) -> list[dg.AssetsDefinition]:
    """The assets, those of the automated groups with their condition."""
    condition = keep_up_to_date(recipe, store_of(resources))

    def with_condition(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(automation_condition=condition) if spec.group_name in GROUPS else spec

    return [asset.map_asset_specs(with_condition) for asset in assets]
