"""Dagster's history in a state folder: the runs, what they take on the disk, and which of them may go."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from orchestration.instance import driver_instance
from orchestration.state import State

DAY_SECONDS = 86400


class History:
    """The runs that an instance has recorded, each with a database and a folder of captured output of its own."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self._folder = Path(instance.storage_directory())

    @classmethod
    @contextmanager
    def open(cls, state: State) -> Iterator["History"]:
        """That of a state folder."""
        with driver_instance(state) as instance:
            yield cls(instance)

    def ended_before(self, days: float) -> list[str]:
        """Ids of the runs that ended more than so many days ago, but those that made what is newest of a partition.

        So the pages go on to show everything as it is.
        """
        runs = self.instance.get_run_records(dg.RunsFilter(statuses=list(FINISHED_STATUSES)))
        limit = time.time() - days * DAY_SECONDS
        old = [run.dagster_run.run_id for run in runs if (run.end_time or run.update_timestamp.timestamp()) < limit]
        newest = set(self._newest()) if old else set()
        return [run_id for run_id in old if run_id not in newest]

    def _newest(self) -> Iterator[str]:
        """The run of the last materialisation of every partition."""
        for key in self.instance.all_asset_keys():
            for partition in self.instance.get_materialized_partitions(key) or [None]:
                only = None if partition is None else [partition]
                wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=only)
                yield from (each.run_id for each in self.instance.fetch_materializations(wanted, limit=1).records)

    def files(self, run_ids: Sequence[str]) -> Iterator[Path]:
        """What the runs alone have on the disk. Dagster leaves it there when it deletes a run."""
        for run_id in run_ids:
            yield from (path for path in (self._folder / run_id).rglob("*") if path.is_file())
            yield from (self._folder / "history" / "runs").glob(f"{run_id}.db*")

    def delete(self, run_ids: Sequence[str]) -> None:
        """Remove runs with their events and files."""
        for run_id in run_ids:
            self.instance.delete_run(run_id)
            for path in self.files([run_id]):
                path.unlink(missing_ok=True)
            shutil.rmtree(self._folder / run_id, ignore_errors=True)
