"""Runs that have nothing to compute stay in their own process: a process for each step would be all they cost."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from orchestration.resources import store_of
from yt8m_assets.assets.failures import asked_for
from yt8m_assets.assets.shell import FORCE_TAG
from yt8m_assets.errors import Yt8mError
from yt8m_assets.partitions import every_asset, keys_of, nodes_of
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"


class _FrugalExecutor(dg.Executor):
    """One executor for runs that compute something, another for those that only look."""

    def __init__(self, busy: dg.Executor, idle: dg.Executor, recipe: Recipe, store: ArtifactStore) -> None:
        self.busy, self.idle, self.recipe, self.store = busy, idle, recipe, store

    @property
    def retries(self) -> Any:
        """Those of the executor for runs that compute."""
        return self.busy.retries

    @property
    def step_dependency_config(self) -> Any:
        """That of the executor for runs that compute."""
        return self.busy.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """What the one or the other does."""
        layer = plan_context.job.get_definition().asset_layer
        assets = [key.to_user_string() for key in layer.selected_asset_keys]
        only_looks = bool(assets or layer.asset_graph.asset_check_keys) and self._all_current(
            plan_context.dagster_run, assets
        )
        yield from (self.idle if only_looks else self.busy).execute(plan_context, execution_plan)

    def _all_current(self, run: dg.DagsterRun, assets: list[str]) -> bool:
        known, lineage = every_asset(self.recipe), Lineage(self.recipe, self.store)
        if asked_for(run, FORCE_TAG) or not all(asset in known for asset in assets):
            return False
        try:
            return all(lineage.current(node) for asset in assets for node in nodes_of_run(self.recipe, asset, run.tags))
        except Yt8mError:  # for the step to say, and to try again where that may help
            return False


def nodes_of_run(recipe: Recipe, asset: str, tags: Mapping[str, str]) -> list[Node]:
    """The nodes of an asset that a run with these tags makes."""
    keys = keys_of(recipe, asset)
    if keys is None:
        return [Node(asset)]
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    if first in keys and last in keys:
        keys = keys[keys.index(str(first)) : keys.index(str(last)) + 1]
    return nodes_of(asset, [tags[PARTITION_NAME_TAG]] if PARTITION_NAME_TAG in tags else keys)


def in_process_when_idle(
    executor: dg.ExecutorDefinition, recipe: Recipe, resources: Mapping[str, Any]
) -> dg.ExecutorDefinition:
    """The executor, but in the run's own process where all that the run makes is up to date; checks run there, too."""
    from orchestration.executors import in_process_executor

    store = store_of(resources)

    def create(context: dg.InitExecutorContext) -> dg.Executor:
        assert executor.executor_creation_fn is not None
        assert in_process_executor.executor_creation_fn is not None
        config = {"retries": context.executor_config.get("retries") or {"enabled": {}}}
        idle = in_process_executor.executor_creation_fn(context._replace(executor_config=config))
        own = executor.apply_config_mapping({"config": context.executor_config}).value  # what `configured` makes of it
        inner = executor.executor_creation_fn(context._replace(executor_config=(own or {})["config"]))
        return _FrugalExecutor(inner, idle, recipe, store)

    return dg.ExecutorDefinition(
        name=executor.name,
        config_schema=executor.config_schema.as_field(),
        requirements=executor.get_requirements,
        executor_creation_fn=create,
        description=executor.description,
    )
