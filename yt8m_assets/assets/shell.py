"""What every asset of this project shares: declared options, and what the UI shows of a result."""

from collections.abc import Mapping
from typing import Any, Protocol

import dagster as dg

from yt8m_assets.assets.display import manifest_metadata
from yt8m_assets.lineage import CODE_VERSIONS
from yt8m_assets.partitions import nodes_of
from yt8m_assets.progress import Progress
from yt8m_assets.storage import ArtifactStore, StageResult, canonical_json, sha256_text

OWNERS = ["team:video-understanding"]
RETRY = dg.RetryPolicy(max_retries=3, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For what may pass: time-outs, throttling, a busy partition, a killed process. `stage_errors` exempts the rest."""
FORCE_TAG = "yt8m/force"
"""Tag of a run that makes its assets again although they are up to date: `yt8m materialize --force`, or on the page."""
GPU_POOL = "gpu"
"""The concurrency pool of training and prediction; its limit is set in dagster.yaml."""


def keep_up_to_date() -> dg.AutomationCondition:
    """Ask for what exists when something it is made from has got a new data version; evaluated once switched on.

    What was never materialised stays so: shifts that no ranking fuses are nobody's business, and a first training is
    a person's decision. Waits while an upstream asset is being made or is due itself: no stage builds on what is not
    up to date.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    busy = dg.AutomationCondition.in_progress() | dg.AutomationCondition.any_deps_in_progress()
    due = changed.since_last_handled() & ~dg.AutomationCondition.missing()
    condition = due & ~busy & ~dg.AutomationCondition.any_deps_match(due)
    return condition.with_label("a dependency has new content")


class ProgressSource(Protocol):
    """Gives a run its progress: lines in Dagster's log, or the bars of the command line."""

    def open(self, log: Any) -> Progress: ...


def asset_options(name: str, group: str, kinds: set[str], **options: Any) -> dict[str, Any]:
    """Arguments of `@dg.asset` that follow the same rule for every asset."""
    return {
        "name": name,
        "group_name": group,
        "kinds": kinds,
        "owners": OWNERS,
        "code_version": CODE_VERSIONS[name],
        "retry_policy": RETRY,
        "automation_condition": keep_up_to_date() if group in ("predictions", "ensemble") else None,
        "tags": {"stage": group, **options.pop("tags", {})},
        **options,
    }


def attempt(context: dg.AssetExecutionContext, store: ArtifactStore) -> ArtifactStore:
    """The store; in a run that asks for a new attempt, one that does not find what this step makes."""
    if str(context.run.tags.get(FORCE_TAG)).lower() != "true":
        return store
    keys = context.partition_keys if context.has_partition_key or context.has_partition_key_range else [None]
    return store.making_again(node.key for node in nodes_of(context.asset_key.to_user_string(), keys))


def run_tags(context: dg.AssetExecutionContext, key: str | None = None) -> dict[str, str]:
    """Tags that lead from an MLflow run back to the Dagster run, asset and partition."""
    tags = {
        "dagster_run_id": context.run.run_id,
        "dagster_asset": context.asset_key.to_user_string(),
        "dagster_attempt": str(context.retry_number + 1),
    }
    return tags | ({"dagster_partition": key} if key is not None else {})


def materialization(
    context: dg.AssetExecutionContext, store: ArtifactStore, results: Mapping[str | None, StageResult]
) -> dg.MaterializeResult:
    """The result of a run: metadata per partition (None: an asset without), and the content's digest as data version.

    Dagster keeps one data version for a run, so that of several partitions is made of all of theirs; each one's own
    stands in its metadata as `digest` and in its manifest.
    """
    for result in results.values():
        if result.reused:
            context.log.info("%s: up to date, nothing done", result.manifest.key)
    digests = {str(key): result.manifest.digest for key, result in results.items()}
    shown = {key: manifest_metadata(store, result) for key, result in results.items()}
    if len(results) == 1:
        (digest,), (metadata,) = digests.values(), shown.values()
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest))
    for key, metadata in shown.items():
        context.add_asset_metadata(metadata, partition_key=key)
    version = sha256_text(canonical_json(digests))
    return dg.MaterializeResult(data_version=dg.DataVersion(version))
