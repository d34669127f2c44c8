"""Dagster's instance as the command line uses it, and what is recorded there."""

import fcntl
import os
import sys
import warnings
from collections.abc import Iterable, Iterator

import dagster as dg
from dagster._check import CheckError
from dagster._core.definitions.data_version import CODE_VERSION_TAG
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
from yt8m_assets.assets.results import recipe_mark
from yt8m_assets.assets.shell import code_version
from yt8m_assets.errors import ConfigError, StorageError
from yt8m_assets.partitions import asset_of, every_asset, node_of, partition_key
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import Manifest

_NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
"""Stdout of the command line belongs to the progress."""
LOCATION, REPOSITORY = "yt8m", "__repository__"
"""The code location's name, as in workspace.yaml and pyproject.toml, and what Dagster calls a module's definitions."""
LISTED = {REPOSITORY_LABEL_TAG: f"{REPOSITORY}@{LOCATION}"}
"""Tag by which the pages list a run with the code location."""


def driver_instance(state: State) -> dg.DagsterInstance:
    """The instance of the state folder, without capture of the terminal's output. Raises StorageError, and
    ConfigError where its settings are none.

    One process at a time opens it: where two make its databases at once, Dagster leaves them unusable.
    """
    if not os.access(state.dagster_home, os.W_OK):
        raise StorageError(f"{state.dagster_home}: cannot write Dagster's records; choose another folder with --state")
    with warnings.catch_warnings(), (state.dagster_home / ".opening").open("w") as opening:
        warnings.simplefilter("ignore")
        fcntl.flock(opening, fcntl.LOCK_EX)
        try:
            settings = InstanceRef.from_dir(str(state.dagster_home), overrides={"compute_logs": _NO_CAPTURE})
            return dg.DagsterInstance.from_ref(settings)
        except (dg.DagsterError, CheckError) as error:
            told = [found.message for found in getattr(error, "errors", ())] or [str(error)]
            reasons = "; ".join(text.split(" Expected: ")[0] for text in told)
            path = state.dagster_home / "dagster.yaml"
            raise ConfigError(f"{path}: {reasons}; mend it, or delete it and it is made again") from error


def belong_to_the_location(instance: dg.DagsterInstance, run_id: str) -> None:
    """Write down at the run's first event where its job comes from, so that pages can open and execute it again."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="orchestration.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, location_name=LOCATION)

    def write_once(_: dg.EventLogEntry) -> None:
        run = instance.get_run_by_id(run_id) if not written else None
        if run is not None:
            written.append(run_id)
            origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, REPOSITORY), run.job_name)
            instance.run_storage.replace_job_origin(run, origin)

    written: list[str] = []
    instance.add_event_listener(run_id, write_once)


class Records:
    """What Dagster has recorded of the nodes."""

    def __init__(self, instance: dg.DagsterInstance, recipe: Recipe) -> None:
        self.instance, self.recipe = instance, recipe

    def up_to_date(self, lineage: Lineage, node: Node) -> bool:
        """Whether the node is published, current, and recorded here as made from what it is made from now."""
        manifest, record = lineage.current(node), self.newest(node)
        return manifest is not None and record is not None and _same(record, manifest)

    def digest(self, node: Node) -> str | None:
        """The content's digest of the node's last materialisation; None where there is none."""
        record = self.newest(node)
        return None if record is None else _text(record, "digest")

    def newest(self, node: Node) -> dg.AssetMaterialization | None:
        """The node's last materialisation."""
        key = partition_key(node)
        asset = dg.AssetKey(asset_of(self.recipe, node))
        wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=None if key is None else [key])
        records = self.instance.fetch_materializations(wanted, limit=1).records
        return records[0].asset_materialization if records else None

    def renewed(self, lineage: Lineage, nodes: Iterable[Node]) -> Iterator[dg.AssetMaterialization]:
        """The last materialisations of what is up to date, with the code version that the definitions have now.

        Dagster compares one version for all partitions of an asset, and calls each one changed when it was recorded
        under another, though the recipe changed for its neighbour alone. To be reported as they are: nothing is made.
        """
        versions = {asset: code_version(self.recipe, asset) for asset in every_asset(self.recipe)}
        for node in nodes:
            record, version = self.newest(node), versions[asset_of(self.recipe, node)]
            tags = (record.tags if record else None) or {}
            if record is None or tags.get(CODE_VERSION_TAG, version) == version:
                continue
            manifest = lineage.current(node)
            if manifest is not None and _same(record, manifest):
                metadata = {**record.metadata, "recipe": dg.MetadataValue.text(recipe_mark(self.recipe))}
                yield record._replace(metadata=metadata, tags={**tags, CODE_VERSION_TAG: version})

    def unproven(self, checks: Iterable[dg.AssetCheckKey]) -> set[Node]:
        """The nodes of which a check did not succeed the last time, or was begun and never finished."""
        latest = self.instance.event_log_storage.get_asset_check_partition_info(list(checks))
        return {
            node_of(info.check_key.asset_key.to_user_string(), info.partition_key)
            for info in latest
            if info.latest_execution_status != AssetCheckExecutionRecordStatus.SUCCEEDED
        }


def _text(record: dg.AssetMaterialization, name: str) -> str | None:
    value = record.metadata.get(name)
    return None if value is None else str(value.value)


def _same(record: dg.AssetMaterialization, manifest: Manifest) -> bool:
    """Whether a materialisation is of an artifact: its content, made from what it is made from."""
    return (_text(record, "digest"), _text(record, "fingerprint")) == (manifest.digest, manifest.fingerprint)
