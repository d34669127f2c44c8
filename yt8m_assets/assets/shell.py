"""What every asset of this project shares: declared options, what must hold before it runs, and what the UI shows."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import dagster as dg

from yt8m_assets.assets.failures import OUTDATED_TAG, asked_for
from yt8m_assets.assets.results import recipe_mark
from yt8m_assets.assets.verdicts import refuse_failed_parents
from yt8m_assets.partitions import asset_nodes, base_asset, deps_of, nodes_of, partitions_of
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, OPTIONAL_GROUP, config_slice
from yt8m_assets.storage import ArtifactStore, canonical_json, sha256_text

OWNERS = ["team:video-understanding"]
RETRY = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For what may pass: time-outs, throttling, a busy partition, a killed process. `stage_errors` exempts the rest."""
FORCE_TAG = "yt8m/force"
"""Tag of a run that makes its assets again although they are up to date: `yt8m materialize --force`, or on the page."""
RECIPE_TAG = "yt8m/recipe"
"""Tag of a run: name and digest of the recipe that its assets were made by."""
GPU_POOL = "gpu"
"""The concurrency pool of training and prediction; its limit is set in dagster.yaml."""
StepTags = Callable[[str], Mapping[str, Any]]
"""What a launcher or an executor must know of a step, as op tags: by the asset's name, or `checks`."""


class ProgressSource(Protocol):
    """Gives a run its progress: lines in Dagster's log, or the bars of the command line."""

    def open(self, log: Any) -> Progress: ...


def untagged(step: str) -> Mapping[str, Any]:
    """The tags of a step where nobody asks for any."""
    return {}


def code_version(recipe: Recipe, asset: str) -> str:
    """What Dagster compares: the version of the asset's code, and a digest of what of the recipe concerns the asset.

    Dagster knows one code version for all partitions, so a field of one model marks the models beside it too, until
    `Records.renewed` records anew those that are up to date.
    """
    slices: dict[str, Any] = {node.key: config_slice(recipe, node) for node in asset_nodes(recipe, asset)}
    if ASSETS[base_asset(asset)].files == "shards":
        simulation = recipe.data.simulation
        slices["simulation"] = None if simulation is None else plain(simulation.identity())
    return f"{ASSETS[base_asset(asset)].code_version}-{sha256_text(canonical_json(slices))[:12]}"


def asset_options(recipe: Recipe, step_tags: StepTags, name: str, **options: Any) -> dict[str, Any]:
    """Arguments of `@dg.asset`: what the asset's entry implies, what is the same for every asset, and `options`."""
    declared = ASSETS[base_asset(name)]
    group = declared.group if name in ASSETS else OPTIONAL_GROUP
    return {
        "name": name,
        "group_name": group,
        "kinds": set(declared.kinds),
        "deps": deps_of(recipe, name),
        "partitions_def": partitions_of(recipe, name),
        "pool": GPU_POOL if declared.machine == "gpu" else None,
        "owners": OWNERS,
        "code_version": code_version(recipe, name),
        "retry_policy": RETRY,
        "op_tags": step_tags(name),
        "tags": {"stage": group},
        **options,
    }


def attempt(context: dg.AssetExecutionContext, recipe: Recipe, store: ArtifactStore) -> ArtifactStore:
    """The store as the run's tags ask for it: that does not find what this step makes, or that takes outdated parents.

    Writes the recipe's name and digest into the run's tags. Raises ParentCheckError where a partition that this step
    is made from has failed its newest blocking check.
    """
    context.instance.add_run_tags(context.run.run_id, {RECIPE_TAG: recipe_mark(recipe)})
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else [None]
    made = nodes_of(context.asset_key.to_user_string(), keys)
    refuse_failed_parents(context.instance, recipe, made)
    if asked_for(context.run, OUTDATED_TAG):
        store = store.taking_outdated()
    return store.making_again(node.key for node in made) if asked_for(context.run, FORCE_TAG) else store


def run_tags(context: dg.AssetExecutionContext, key: str | None = None) -> dict[str, str]:
    """Tags that lead from an MLflow run back to the Dagster run, asset and partition."""
    tags = {
        "dagster_run_id": context.run.run_id,
        "dagster_asset": context.asset_key.to_user_string(),
        "dagster_attempt": str(context.retry_number + 1),
    }
    return tags | ({"dagster_partition": key} if key is not None else {})
