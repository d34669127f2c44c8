"""Dagster's instance as the command line uses it, and what is recorded there."""

import os
import sys
import warnings
from collections.abc import Iterable

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from orchestration.state import State
from yt8m_assets.assets.shell import code_version
from yt8m_assets.errors import StorageError
from yt8m_assets.partitions import node_of, partition_key
from yt8m_assets.stages.lineage import Lineage, Node

_NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
"""Stdout of the command line belongs to the progress."""
LOCATION, REPOSITORY = "yt8m", "__repository__"
"""The code location's name, as in workspace.yaml and pyproject.toml, and what Dagster calls a module's definitions."""
LISTED = {REPOSITORY_LABEL_TAG: f"{REPOSITORY}@{LOCATION}"}
"""Tag by which the pages list a run with the code location."""


def driver_instance(state: State) -> dg.DagsterInstance:
    """The instance of the state folder, without capture of the terminal's output. Raises StorageError."""
    if not os.access(state.dagster_home, os.W_OK):
        raise StorageError(f"{state.dagster_home}: cannot write Dagster's records; choose another folder with --state")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = InstanceRef.from_dir(str(state.dagster_home), overrides={"compute_logs": _NO_CAPTURE})
        return dg.DagsterInstance.from_ref(settings)


def belong_to_the_location(instance: dg.DagsterInstance, run_id: str) -> None:
    """Write down where the run's job comes from, so that pages can open and execute it again."""
    run = instance.get_run_by_id(run_id)
    if run is not None:
        target = LoadableTargetOrigin(executable_path=sys.executable, module_name="orchestration.definitions")
        location = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name=LOCATION)
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, REPOSITORY), run.job_name)
        instance.run_storage.replace_job_origin(run, origin)


class Records:
    """What Dagster has recorded of the nodes."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance

    def up_to_date(self, lineage: Lineage, node: Node) -> bool:
        """Whether the node is published, current, and recorded here with that content."""
        manifest = lineage.current(node)
        return manifest is not None and self.recorded(node) == (
            manifest.digest,
            code_version(lineage.recipe, node.asset),
        )

    def digest(self, node: Node) -> str | None:
        """The content's digest of the node's last materialisation; None where there is none."""
        return self.recorded(node)[0]

    def recorded(self, node: Node) -> tuple[str | None, str | None]:
        """Digest and code version of the node's last materialisation; None where there is none."""
        key = partition_key(node)
        partitions = None if key is None else [key]
        wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(node.asset), asset_partitions=partitions)
        records = self.instance.fetch_materializations(wanted, limit=1).records
        if not records or records[0].asset_materialization is None:
            return None, None
        materialization = records[0].asset_materialization
        value = materialization.metadata.get("digest")
        version = (materialization.tags or {}).get("dagster/code_version")
        return (str(value.value) if value is not None else None), version

    def unproven(self, checks: Iterable[dg.AssetCheckKey]) -> set[Node]:
        """The nodes of which a check did not succeed the last time, or was begun and never finished."""
        latest = self.instance.event_log_storage.get_asset_check_partition_info(list(checks))
        return {
            node_of(info.check_key.asset_key.to_user_string(), info.partition_key)
            for info in latest
            if info.latest_execution_status != AssetCheckExecutionRecordStatus.SUCCEEDED
        }
