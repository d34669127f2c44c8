"""Backfills as people launch them: through the web server's GraphQL, made by the daemon and the default launcher."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestration.state import prepare_state
from tests.graph import make_data
from tests.orchestration.servers import ROOT, TICK_SECONDS, Dagster, serve, wait_for
from tests.tiny import tiny_recipe
from yt8m_assets.partitions import OPTIONAL, node_of, required_cells
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ASSET = "oof_predictions"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@dataclass(frozen=True)
class Site:
    """A web server and daemon over a store whose predictions can be watched."""

    dagster: Dagster
    store: ArtifactStore
    folder: Path

    def passes(self) -> int:
        """Passes over the data so far."""
        path = self.folder / "reads"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Passes that begin inside wait until the end."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()

    def forget(self, *cells: str) -> None:
        """Take cells away, so that they are to be made."""
        for cell in cells:
            self.store.delete(node_of(ASSET, cell).key)

    def generations(self, *cells: str) -> list[int]:
        """How often each cell was published; every file is fetched, and so checked against its sha256."""
        manifests = [self.store.require(node_of(ASSET, cell).key) for cell in cells]
        for manifest in manifests:
            self.store.fetch(manifest)
        return [manifest.generation for manifest in manifests]


def server_state(folder: Path, database: Path, **settings: str) -> dict[str, str]:
    """A state with data and models, and a Dagster home of its own whose daemon looks every two seconds."""
    before = os.environ.get("DAGSTER_HOME")
    state = prepare_state(folder / "state")
    os.environ.pop("DAGSTER_HOME") if before is None else os.environ.__setitem__("DAGSTER_HOME", before)
    shutil.copyfile(database, state.root / "mlflow" / "mlflow.db")
    home = folder / "home"
    home.mkdir()
    instance = (state.dagster_home / "dagster.yaml").read_text().replace(str(state.dagster_home), str(home))
    for name in ("poll_interval_seconds", "free_slots_after_run_end_seconds"):
        (line,) = [line for line in instance.splitlines() if line.strip().startswith(f"{name}:")]
        instance = instance.replace(line, f"  {name}: {TICK_SECONDS}")
    (home / "dagster.yaml").write_text(instance)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("YT8M_", "MLFLOW_", "DAGSTER_"))}
    return kept | {
        "DAGSTER_HOME": str(home),
        "YT8M_STATE": str(state.root),
        "YT8M_RECIPE": str(Path(__file__).with_name("watched_recipe.py")),
        "YT8M_WATCHED": str(folder),
        "YT8M_EXECUTOR": "in_process",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **settings,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("backfills"), migrated_database) as opened:
        yield opened


@contextmanager
def open_site(folder: Path, database: Path, **settings: str) -> Iterator[Site]:
    """Servers over a folder of their own."""
    environment = server_state(folder, database, **settings)
    store = ArtifactStore(str(folder / "state" / "artifacts"), folder / "state" / "cache")
    make_data(tiny_recipe(), store)
    with serve(environment, folder) as dagster:
        yield Site(dagster, store, folder)


def ranges(state: dict[str, Any]) -> set[tuple[str, str]]:
    """First and last cell of each run of a backfill."""
    return {(run["tags"][RANGE_START], run["tags"][RANGE_END]) for run in state["runs"]}


def test_how_many_runs_and_passes_a_backfill_takes(site: Site) -> None:
    """Neighbours in the list are one run, whatever their models; by tags any range is one. Each reads once."""
    every, optional = required_cells(tiny_recipe()), ["one|-2", "two|-2", "two|2"]
    backfills = [site.dagster.backfill(asset, cells) for asset, cells in ((ASSET, every), (OPTIONAL[ASSET], optional))]
    first, second = [site.dagster.wait(backfill) for backfill in backfills]
    assert [first["status"], second["status"]] == ["COMPLETED_SUCCESS"] * 2
    assert ranges(first) == {("one|0", "two|1")}
    assert ranges(second) == {("one|-2", "two|-2"), ("two|2", "two|2")}
    assert (len(first["runs"]), len(second["runs"]), site.passes()) == (1, 2, 3)
    site.forget("one|1", "two|-1")
    run_id = site.dagster.run("predict_cells", {RANGE_START: "one|1", RANGE_END: "two|-1"}, [ASSET])
    assert site.dagster.wait_for_run(run_id) == "SUCCESS"
    assert site.passes() == 4
    assert site.generations(*every, *optional) == [1] * 8


def test_a_failed_cell_is_made_again_alone(site: Site) -> None:
    cells = ["two|-1", "two|0", "two|1"]
    site.forget(*cells)
    (site.folder / "fail").write_text(Node(ASSET, "two", 0).key)
    failed_id = site.dagster.backfill(ASSET, cells)
    failed = site.dagster.wait(failed_id)
    assert failed["status"] == "COMPLETED_FAILED"
    assert [run["status"] for run in failed["runs"]] == ["FAILURE"]
    assert site.dagster.failed_partitions(ASSET) == 1
    assert site.generations("two|-1", "two|1") == [1, 1]
    again = site.dagster.wait(site.dagster.again_from_failure(failed_id))
    assert again["status"] == "COMPLETED_SUCCESS"
    assert ranges(again) == {("two|0", "two|0")}
    assert site.dagster.failed_partitions(ASSET) == 0
    assert site.generations(*cells) == [1, 1, 1]


def test_a_canceled_backfill_makes_room_for_the_next(site: Site) -> None:
    """The first one's run holds the only slot of the GPU pool; the second one's waits in the queue."""
    site.forget("one|-2", "two|2")
    before = site.passes()
    with site.held():
        first = site.dagster.backfill(OPTIONAL[ASSET], ["one|-2"])
        wait_for(lambda: site.passes() == before + 1, what="the first backfill's pass")
        assert site.dagster.pool("gpu")["activeSlotCount"] == 1
        second = site.dagster.backfill(OPTIONAL[ASSET], ["two|2"])
        wait_for(lambda: site.dagster.statuses(second) == ["QUEUED"], what="the second backfill's run")
        site.dagster.cancel(first)
        state = site.dagster.wait(first)
        assert state["status"] == "CANCELED"
        assert [run["status"] for run in state["runs"]] == ["CANCELED"]
        wait_for(lambda: site.passes() == before + 2, what="the second backfill's pass")
    assert site.dagster.wait(second)["status"] == "COMPLETED_SUCCESS"
    assert site.store.manifest(node_of(ASSET, "one|-2").key) is None
    assert site.generations("two|2") == [1]
    wait_for(lambda: site.dagster.pool("gpu")["activeSlotCount"] == 0, what="the free slot")


def test_two_backfills_of_the_same_cells_end_with_one_whole_result_each(site: Site) -> None:
    """RELIABILITY F30, with room for both in the pool: they score at once, and publish at once."""
    cells = ["two|0", "two|1"]
    site.forget(*cells)
    before = site.passes()
    site.dagster.set_pool_limit("gpu", 2)
    with site.held():
        backfills = [site.dagster.backfill(ASSET, cells) for _ in range(2)]
        wait_for(lambda: site.passes() == before + 2, what="both passes")
    assert [site.dagster.wait(backfill)["status"] for backfill in backfills] == ["COMPLETED_SUCCESS"] * 2
    site.dagster.set_pool_limit("gpu", 1)
    assert site.generations(*cells) == [1, 1]
    assert site.dagster.pool("gpu")["activeSlotCount"] == 0


def test_a_run_beyond_its_time_is_ended(site: Site) -> None:
    """RELIABILITY F33: run monitoring ends it, and its slot is free for others."""
    site.forget("one|2")
    with site.held():
        tags = {"dagster/partition": "one|2", "dagster/max_runtime": "3"}
        run_id = site.dagster.run("predict_optional_cells", tags, [OPTIONAL[ASSET]])
        assert site.dagster.wait_for_run(run_id) == "FAILURE"
    assert "Exceeded maximum runtime of 3 seconds" in site.dagster.messages(run_id)
    wait_for(lambda: site.dagster.pool("gpu")["activeSlotCount"] == 0, what="the free slot")
    assert site.store.manifest(node_of(ASSET, "one|2").key) is None


def test_the_other_policy_gives_every_cell_a_run_of_its_own(migrated_database: Path, tmp_path: Path) -> None:
    with open_site(tmp_path, migrated_database, YT8M_BACKFILL="per_partition") as site:
        state = site.dagster.wait(site.dagster.backfill(ASSET, ["two|-1", "two|0"]))
        assert state["status"] == "COMPLETED_SUCCESS"
        assert ranges(state) == {("two|-1", "two|-1"), ("two|0", "two|0")}
        assert (len(state["runs"]), site.passes()) == (2, 2)
        assert site.generations("two|-1", "two|0") == [1, 1]
