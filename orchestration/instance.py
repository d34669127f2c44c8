"""Dagster's instance as the command line uses it, and what is recorded there."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from orchestration.state import DRIVER_CONFIG, State
from yt8m_assets.lineage import Node
from yt8m_assets.partitions import partition_key


def driver_instance(state: State) -> dg.DagsterInstance:
    """The instance of the state folder, without capture of the terminal's output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = (state.dagster_home / DRIVER_CONFIG).is_file()
        return dg.DagsterInstance.from_config(str(state.dagster_home), DRIVER_CONFIG if own else "dagster.yaml")


class Records:
    """What Dagster has recorded of the nodes."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def digest(self, node: Node) -> str | None:
        """The content's digest of the node's last materialisation; None where there is none."""
        key = partition_key(node)
        partitions = None if key is None else [key]
        wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(node.asset), asset_partitions=partitions)
        records = self.instance.fetch_materializations(wanted, limit=1).records
        if not records or records[0].asset_materialization is None:
            return None
        value = records[0].asset_materialization.metadata.get("digest")
        return str(value.value) if value is not None else None

    def failed_checks(self, keys: Iterable[dg.AssetCheckKey]) -> "FailedChecks":
        """What the checks that did not succeed the last time (or were never finished) had looked at."""
        latest = self.instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
        failed: set[tuple[str, str | None]] = set()
        for key, record in latest.items():
            if record is not None and record.status.value != "SUCCEEDED":
                run = self.instance.get_run_by_id(record.run_id)
                partition = run.tags.get("dagster/partition") if run else None
                failed.add((key.asset_key.to_user_string(), partition))
        return FailedChecks(frozenset(failed))


@dataclass(frozen=True)
class FailedChecks:
    """Assets and partitions (None: any of them) whose checks are to be repeated."""

    places: frozenset[tuple[str, str | None]]

    def __contains__(self, node: Node) -> bool:
        return (node.asset, None) in self.places or (node.asset, partition_key(node)) in self.places
