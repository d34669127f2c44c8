"""What Dagster's newest verdicts say about what an asset is made from: nothing is built on what failed its check."""

from collections.abc import Iterable, Iterator

import dagster as dg
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from yt8m_assets.errors import ParentCheckError
from yt8m_assets.partitions import partition_key
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, parents

_FINISHED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}


def failed_checks(instance: dg.DagsterInstance, nodes: Iterable[Node]) -> Iterator[str]:
    """`node: check: what it found` of every node's newest finished verdicts that are bad."""
    for node in nodes:
        where = PartitionKeyFilter(key=partition_key(node))
        for name in ASSETS[node.asset].checks:
            key = dg.AssetCheckKey(dg.AssetKey(node.asset), name)
            newest = instance.event_log_storage.get_asset_check_execution_history(
                key, limit=1, status=_FINISHED, partition_filter=where
            )
            if newest and newest[0].status == AssetCheckExecutionRecordStatus.FAILED:
                event = newest[0].event
                found = event.dagster_event.asset_check_evaluation_data if event and event.dagster_event else None
                yield f"{node.key}: {name}: {(found and found.description) or 'failed'}"


def refuse_failed_parents(instance: dg.DagsterInstance, recipe: Recipe, made: Iterable[Node]) -> None:
    """Raise ParentCheckError where something that these nodes are made from has failed its newest blocking check."""
    above = dict.fromkeys(parent for node in made for parent in parents(recipe, node))
    failed = list(failed_checks(instance, above))
    if failed:
        raise ParentCheckError(
            f"not made from what failed its check: {'; '.join(failed)}. Mend it, then materialise it again or run its "
            "check alone: the newest verdict counts"
        )
