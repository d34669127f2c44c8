"""What the pages do, done with Dagster's own command lines; README says how they find the state."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from orchestration.instance import driver_instance
from orchestration.state import prepare_state
from orchestration.status import states
from tests.orchestration.conftest import Graph
from tests.orchestration.servers import Dagster, process, wait_for
from tests.ports import free_port
from yt8m_assets.recipes.schema import SHIFTS
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import Node

ROOT = Path(__file__).parents[2]
RECIPE = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tiny import tiny_recipe\nRECIPE = tiny_recipe()\n"


def call(graph: Graph, recipe: Path, *command: str, **settings: str) -> None:
    """Run a command of this environment in the project's folder; it must succeed."""
    own = {
        "DAGSTER_HOME": str(graph.state.dagster_home),
        "YT8M_STATE": str(graph.state.root),
        "YT8M_RECIPE": str(recipe),
        "YT8M_EXECUTOR": "in_process",
        "OMP_NUM_THREADS": "1",
        "DG_CLI_TEST_MODE": "1",
        **settings,
    }
    path = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [str(path), *command[1:]], cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_cells_with_dg_and_a_ranking_with_dagster(own_graph: Graph, tmp_path: Path) -> None:
    """A range of cells is one run; what it made is seen by `yt8m status` and by the pages alike."""

    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    own_graph.store.delete("oof_predictions/two/shift-1")
    own_graph.store.delete("oof_ranking/two")
    for asset, cells in (("oof_predictions", "one|0...two|1"), ("oof_optional_predictions", "one|-2...two|2")):
        call(own_graph, recipe, "dg", "launch", "--assets", asset, "--partition-range", cells)
    where = ("--select", "oof_ranking", "--partition", "two", "-m", "orchestration.definitions")
    call(own_graph, recipe, "dagster", "asset", "materialize", *where)
    found = states(Lineage(own_graph.recipe, own_graph.store))
    assert {found[Node("oof_predictions", "two", -1)], found[Node("oof_ranking", "two")]} == {"current"}
    with driver_instance(own_graph.state) as instance:
        ranking, *others = instance.get_runs(limit=3)
        assert {run.status for run in (ranking, *others)} == {dg.DagsterRunStatus.SUCCESS}
        assert ranking.tags["dagster/partition"] == "two"
        assets = ("oof_predictions", "oof_optional_predictions")
        made = {cell for asset in assets for cell in instance.get_materialized_partitions(dg.AssetKey(asset))}
    assert made == {f"{model}|{shift}" for model in ("one", "two") for shift in SHIFTS}
    with own_graph.open() as driver:
        assert all(driver.up_to_date(Node("oof_predictions", key, shift)) for key in ("one", "two") for shift in SHIFTS)


@pytest.mark.slow
def test_a_run_that_only_looks_takes_one_process(own_graph: Graph, tmp_path: Path) -> None:
    """And one that makes something a process for each step."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    processes = []
    for _ in range(2):
        call(own_graph, recipe, "dg", "launch", "--assets", "submission", YT8M_EXECUTOR="multiprocess")
        with driver_instance(own_graph.state) as instance:
            (run,) = instance.get_runs(limit=1)
            assert run.status == dg.DagsterRunStatus.SUCCESS
            events = [entry.dagster_event for entry in instance.all_logs(run.run_id)]
        processes.append({event.pid for event in events if event is not None and event.step_key and event.pid})
        own_graph.store.delete("submission")
    assert [len(found) > 1 for found in processes] == [False, True]


@pytest.fixture
def project(own_graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, whose .state is the finished graph's, after a first `yt8m` command in its new place."""
    folder = checkout(tmp_path / "project")
    own_graph.state.root.rename(folder / ".state")
    monkeypatch.setenv("DAGSTER_HOME", "")  # so that what is set now is taken back
    prepare_state(folder / ".state")
    return folder


def checkout(folder: Path) -> Path:
    """A copy of what the repository holds and the code location needs."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("models", "yt8m_assets", "orchestration"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "workspace.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "recipe.py").write_text(RECIPE)
    return folder


AS_ANYBODY = ["setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
"""Before a command of root: permissions hold for it."""


def project_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER_", "YT8M_"))}
    own = {"YT8M_RECIPE": "recipe.py", "OMP_NUM_THREADS": "1", "DG_CLI_TEST_MODE": "1", "PYTHONPATH": str(ROOT)}
    return {**kept, **own}


LOADING = ("python", "-c", "from orchestration.definitions import defs; assert defs().resolve_asset_graph()")


@pytest.mark.parametrize(
    ("command", "writable"),
    [
        (LOADING, False),
        (("dg", "list", "defs"), True),
        (("dagster", "definitions", "validate"), True),
    ],
    ids=["loading", "list", "validate"],
)
def test_who_only_looks_writes_nothing(tmp_path: Path, command: tuple[str, ...], writable: bool) -> None:
    """In a fresh checkout, without DAGSTER_HOME. Dagster's tools take their own temporary folder away again."""
    folder = checkout(tmp_path / "project")
    every = [folder, *folder.rglob("*")]
    for path in every if not writable else []:
        path.chmod(0o555 if path.is_dir() else 0o444)
    program = str(Path(sys.executable).with_name(command[0]))
    done = subprocess.run(
        [*AS_ANYBODY, program, *command[1:]],
        cwd=folder,
        env=project_environment() | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    for path in every if not writable else []:
        path.chmod(0o755)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted([folder, *folder.rglob("*")]) == sorted(every)


PAGE = """{ instance { concurrencyLimits { concurrencyKey limit } } runsOrError { ... on Runs { count } }
  assetNodes { assetKey { path } repository { location { name } } assetMaterializations(limit: 1) { runId } } }"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [("dagster", "dev"), ("dg", "dev")])
def test_dev_says_how_it_shows_what_make_ui_shows(project: Path, command: tuple[str, str], tmp_path: Path) -> None:
    """Typed in the project's folder: one line, and with what it says the same records, pool and location name."""
    port = free_port()
    program = str(Path(sys.executable).with_name(command[0]))
    log = tmp_path / "dev.log"
    with process([program, *command[1:], "--port", str(free_port())], project_environment(), log, project):
        said = wait_for(lambda: re.search(r"export DAGSTER_HOME=(\S+)$", log.read_text(), re.M), 90, "the line")
    environment = project_environment() | {"DAGSTER_HOME": said[1]}
    with process([program, *command[1:], "--port", str(port)], environment, log, project):
        dagster = Dagster(port)
        nodes = wait_for(lambda: answered(dagster), 90, "the page")
        assert {node["repository"]["location"]["name"] for node in nodes["assetNodes"]} == {"yt8m"}
        made = {node["assetKey"]["path"][0] for node in nodes["assetNodes"] if node["assetMaterializations"]}
        assert {"submission", "pretraining_shards", "leaderboard"} <= made
        assert {"concurrencyKey": "gpu", "limit": 1} in nodes["instance"]["concurrencyLimits"]
    assert "export DAGSTER_HOME" not in log.read_text()


def answered(dagster: Dagster) -> dict[str, object] | None:
    """What the page shows, once the code is loaded."""
    try:
        found: dict[str, object] = dagster.ask(PAGE)
    except OSError:
        return None
    return found if found["assetNodes"] else None


@pytest.mark.slow
def test_scaffolded_assets_join_the_graph(project: Path) -> None:
    def run(*command: str) -> str:
        program = Path(sys.executable).with_name("dg")
        done = subprocess.run(
            [program, *command], cwd=project, env=project_environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("scaffold", "defs", "dagster.asset", "mine.py")
    assert (project / "orchestration" / "defs" / "mine.py").is_file()
    listed = run("list", "defs", "--json")
    assert all(f'"{name}"' in listed for name in ("mine", "submission"))
