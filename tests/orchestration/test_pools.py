"""Slots of a pool: freed when their holder is dead, and waited for with a line that Ctrl-C ends."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from sqlalchemy.exc import InternalError

from orchestration.driver import open_driver
from orchestration.executors import in_process_executor
from orchestration.instance import driver_instance
from orchestration.pools import POLL_SECONDS, PROCESS_TAG, process_mark, tidy, wait_aloud
from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from tests.orchestration.conftest import Graph
from tests.orchestration.servers import wait_for
from tests.tiny import tiny_recipe
from yt8m_assets.assets.failures import DRIVER_TAG
from yt8m_assets.progress import PlainProgress

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setenv("DAGSTER_HOME", "")
    return prepare_state(tmp_path / "state")


@pytest.fixture
def instance(state: State) -> Iterator[dg.DagsterInstance]:
    with driver_instance(state) as opened:
        opened.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        yield opened


@dg.op(pool="gpu")
def train() -> None:
    """Takes the slot."""


@dg.job(executor_def=in_process_executor)
def training() -> None:
    train()


def dead_mark() -> str:
    """The mark of a process that was there and is gone."""
    code = "from orchestration.pools import process_mark; print(process_mark())"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout[
        :-1
    ]


def holder(instance: dg.DagsterInstance, mark: str, tag: str = PROCESS_TAG) -> str:
    """A started run that holds the pool's slot, executed by the process of the mark; its id."""
    run = instance.create_run_for_job(training)
    instance.add_run_tags(run.run_id, {tag: f"{run.run_id} {mark}" if tag == PROCESS_TAG else mark})
    instance.handle_run_event(
        run.run_id, dg.DagsterEvent(event_type_value="PIPELINE_START", job_name="training", message="started")
    )
    assert instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "train").is_claimed
    return run.run_id


def slots(instance: dg.DagsterInstance) -> list[str]:
    return [slot.run_id for slot in instance.event_log_storage.get_concurrency_info("gpu").claimed_slots]


@pytest.mark.parametrize("tag", [PROCESS_TAG, DRIVER_TAG])
def test_what_a_dead_process_holds_is_freed(instance: dg.DagsterInstance, tag: str) -> None:
    run_id = holder(instance, dead_mark(), tag)
    assert tidy(instance) == [run_id]
    ended = instance.get_run_by_id(run_id)
    assert ended is not None
    assert ended.status == dg.DagsterRunStatus.FAILURE
    assert slots(instance) == []
    assert tidy(instance) == []


@pytest.mark.parametrize("mark", [None, "elsewhere 1 1700000000"], ids=["here", "on another host"])
def test_what_a_living_process_holds_is_kept(instance: dg.DagsterInstance, mark: str | None) -> None:
    run_id = holder(instance, mark or process_mark())
    assert tidy(instance) == []
    assert slots(instance) == [run_id]


def test_the_tags_of_a_rerun_name_its_parents_process(instance: dg.DagsterInstance) -> None:
    run_id = holder(instance, process_mark())
    instance.add_run_tags(run_id, {PROCESS_TAG: f"another-run {dead_mark()}"})
    assert tidy(instance) == []


def test_a_step_that_outlives_its_run_keeps_the_slot(instance: dg.DagsterInstance) -> None:
    run_id = holder(instance, dead_mark())
    step = dg.DagsterEvent(
        event_type_value="STEP_START", job_name="training", message="", step_key="train", pid=os.getpid()
    )
    instance.report_dagster_event(step, run_id)
    assert tidy(instance) == []
    assert slots(instance) == [run_id]


def test_claims_of_wiped_runs_go_and_slots_are_made_again(instance: dg.DagsterInstance) -> None:
    import sqlite3

    run_id = holder(instance, process_mark())
    instance.delete_run(run_id)
    storage = instance.event_log_storage
    storage.claim_concurrency_slot("gpu", run_id, "train")  # `dagster run wipe` beside a run leaves this
    assert tidy(instance) == []
    assert slots(instance) == []
    (database,) = Path(instance.root_directory).rglob("index.db")
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM concurrency_slots")
    assert storage.get_concurrency_info("gpu").slot_count == 0
    tidy(instance)
    assert storage.get_concurrency_info("gpu").slot_count == 1
    assert training.execute_in_process(instance=instance).success


def test_our_executors_name_the_process(instance: dg.DagsterInstance) -> None:
    result = dg.execute_job(dg.reconstructable(make_training), instance=instance)
    run = instance.get_run_by_id(result.run_id)
    assert result.success
    assert run is not None
    assert run.tags[PROCESS_TAG] == f"{run.run_id} {process_mark()}"


def make_training() -> dg.JobDefinition:
    """For `reconstructable`."""
    return training


def test_a_wait_says_who_holds_the_slot_and_ends_with_one_signal(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = holder(instance, process_mark())
    lines: list[str] = []
    storage, claims = instance.event_log_storage, 0
    claim = storage.claim_concurrency_slot

    def counted(*arguments: Any) -> Any:
        nonlocal claims
        claims += 1
        return claim(*arguments)

    monkeypatch.setattr(storage, "claim_concurrency_slot", counted)

    def interrupted(line: str) -> None:
        lines.append(line)
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    wait_aloud(instance, interrupted)
    started = time.monotonic()
    with pytest.raises(dg.DagsterExecutionInterruptedError):
        training.execute_in_process(instance=instance)
    seconds = time.monotonic() - started
    assert seconds < 20, "the signal, a second after the line, ends the wait and not the next thing that happens"
    assert claims <= seconds / POLL_SECONDS + 2, "it does not spin"
    (line,) = lines
    assert line.startswith(f"waiting for the gpu pool, held by run {run_id[:8]} (training, process {os.getpid()} on ")
    assert line.endswith("; Ctrl-C ends the wait")
    info = instance.event_log_storage.get_concurrency_info("gpu")
    assert [step.run_id for step in info.pending_steps] == [run_id]


def test_a_wait_ends_when_its_holder_dies(instance: dg.DagsterInstance) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command) as process:
        import psutil

        host = process_mark().split(" ")[0]
        holder(instance, f"{host} {process.pid} {psutil.Process(process.pid).create_time():.0f}")
        lines: list[str] = []
        wait_aloud(instance, lines.append)
        process.kill()
        process.wait()
        assert training.execute_in_process(instance=instance).success
    assert slots(instance) == []


def test_a_driver_ends_what_is_dead_and_waits_aloud_for_what_lives(
    instance: dg.DagsterInstance, state: State, capfd: pytest.CaptureFixture[str]
) -> None:
    dead = holder(instance, dead_mark())
    progress = PlainProgress(sys.stdout, 0)
    with open_driver(tiny_recipe(), state, Settings.from_environment(state), progress) as driver:
        ended = driver.instance.get_run_by_id(dead)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.FAILURE
        living = holder(driver.instance, process_mark())
        timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(dg.DagsterExecutionInterruptedError):
            training.execute_in_process(instance=driver.instance)
        assert f"waiting for the gpu pool, held by run {living[:8]}" in capfd.readouterr().out


@pytest.mark.slow
def test_a_pass_beside_a_training_and_after_its_death(own_graph: Graph, tmp_path: Path) -> None:
    """`dg launch` trains, `yt8m materialize` waits and ends with Ctrl-C; after SIGKILL of the first it goes on."""
    recipe = tmp_path / "slow.py"
    recipe.write_text(SLOW)
    shutil.rmtree(own_graph.state.artifacts / "checkpoints", ignore_errors=True)
    own = {
        **os.environ,
        "DAGSTER_HOME": str(own_graph.state.dagster_home),
        "YT8M_STATE": str(own_graph.state.root),
        "YT8M_RECIPE": str(recipe),
        "OMP_NUM_THREADS": "1",
        "DG_CLI_TEST_MODE": "1",
        "PYTHONPATH": str(ROOT),
    }
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--assets", "pretrained_model", "--partition", "one"]
    log = (tmp_path / "launch.log").open("wb")
    first = subprocess.Popen(launch, cwd=ROOT, env=own, start_new_session=True, stdout=log, stderr=log)
    materialize = [sys.executable, "-m", "orchestration.cli", "materialize", "--state", str(own_graph.state.root)]
    command = [*materialize, "--models", "two", "--until", "pretrained_model"]
    try:
        wait_for(lambda: list(own_graph.state.artifacts.glob("checkpoints/**/step-*")), 90, "a checkpoint")
        second = subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        said = ""
        while "waiting for the gpu pool" not in said:
            said = second.stderr.readline()
            assert said, "the pass ended without waiting"
        assert "(pretrained_model one, process " in said
        second.send_signal(signal.SIGINT)
        assert second.wait(10) == 130
        second.stderr.close()
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        log.close()
    own["YT8M_RECIPE"] = str(recipe)
    recipe.write_text(SLOW.replace("3000", "4"))
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr


SLOW = """
from dataclasses import replace
from tests.tiny import tiny_recipe
RECIPE = tiny_recipe()
slow = [replace(m, pretraining=replace(m.pretraining, num_steps=3000, checkpoint_every=2)) for m in RECIPE.models]
RECIPE = replace(RECIPE, models=tuple(slow))
"""


@pytest.mark.parametrize("made", [True, False])
def test_a_pool_that_another_process_has_just_made_is_no_error(made: bool) -> None:
    """Over PostgreSQL Dagster goes on in a transaction that has ended when two processes make a pool at once."""

    def initialize(key: str) -> bool:
        raise InternalError("INSERT", {}, Exception("current transaction is aborted"))

    pools = [SimpleNamespace(name="gpu")] if made else []
    storage = SimpleNamespace(
        initialize_concurrency_limit_to_default=initialize,
        claim_concurrency_slot=None,
        get_pool_limits=lambda: pools,
    )
    wait_aloud(SimpleNamespace(event_log_storage=storage), print)  # type: ignore[arg-type]
    if made:
        assert storage.initialize_concurrency_limit_to_default("gpu")
    else:
        with pytest.raises(InternalError):
            storage.initialize_concurrency_limit_to_default("gpu")
