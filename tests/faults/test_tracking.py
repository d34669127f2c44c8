"""Rows F14 and F40-F42 of RELIABILITY.md: losing the tracking server never loses training."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.tracking_server import FaultyServer, faulty_server
from yt8m_assets.tracking import MlflowTracking
from yt8m_assets.tracking.spool import Journal, Spool

BUDGET = 6.0


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with faulty_server(mlflow_uri, str(tmp_path / "artifacts"), monkeypatch) as started:
        yield started


def open_tracking(uri: str, tmp_path: Path) -> MlflowTracking:
    location = str(tmp_path / "artifacts")
    return MlflowTracking(uri, artifact_location=location, spool_path=tmp_path / "spool", budget_seconds=BUDGET)


def train(tracking: MlflowTracking, steps: range, **options) -> tuple[str | None, float]:
    """A short "training" with a metric a step; the run's id and the seconds it took."""
    started = time.monotonic()
    with tracking.run("tiny", kind="pretraining", model="tiny", **options) as run:
        for step in steps:
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    return run.run_id, time.monotonic() - started


def losses(mlflow_uri: str, run_id: str) -> list[int]:
    from mlflow import MlflowClient

    return [point.step for point in MlflowClient(mlflow_uri).get_metric_history(run_id, "train/loss")]


def only_run(mlflow_uri: str):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("yt8m")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_f14_non_finite_metrics_become_tags(mlflow_uri: str, tmp_path: Path):
    with open_tracking(mlflow_uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": float("inf"), "other": float("nan"), "fine@3": 0.5}, 7)
    stored = only_run(mlflow_uri)
    assert stored.data.metrics == {"fine_3": 0.5}
    assert stored.data.tags["nonfinite/train/loss"] == "inf at step 7"
    assert stored.data.tags["nonfinite/other"] == "nan at step 7"


def test_f40_closed_port_costs_less_than_the_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracking = open_tracking("http://user:canary-7731@127.0.0.1:9", tmp_path)
    run_id, seconds = train(tracking, range(50))
    assert seconds < BUDGET + 2
    assert run_id is not None
    assert run_id.startswith("spooled-")
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) <= 2
    assert "canary" not in caplog.text + repr(tracking)


def test_f40_hanging_server_costs_less_than_the_budget(server: FaultyServer, tmp_path: Path):
    server.mode = "hang"
    _, seconds = train(open_tracking(server.uri, tmp_path), range(50))
    assert seconds < BUDGET + 2


def test_f40_down_at_start_is_replayed_by_the_next_run(server: FaultyServer, tmp_path: Path, mlflow_uri: str):
    server.mode = "503"
    (tmp_path / "config.json").write_text("{}")
    with open_tracking(server.uri, tmp_path).run("first", kind="pretraining", params={"a": 1}) as run:
        run.log_metrics({"train/loss": 0.5}, 3)
        run.log_artifact(tmp_path / "config.json")
    assert run.url is None
    (tmp_path / "config.json").unlink()
    server.mode = "up"
    with open_tracking(server.uri, tmp_path).run("second", kind="pretraining"):
        pass
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    runs = {r.info.run_name: r for r in client.search_runs([client.get_experiment_by_name("yt8m").experiment_id])}
    assert set(runs) == {"first", "second"}
    assert runs["first"].data.metrics == {"train/loss": 0.5}
    assert runs["first"].data.params == {"a": "1"}
    assert runs["first"].info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(runs["first"].info.run_id)] == ["config.json"]
    assert not list(tmp_path.glob("spool/*/*")), "nothing is left in the spool"


def test_f40_down_in_the_middle_loses_and_repeats_nothing(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("yt8m_assets.tracking.run.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("yt8m_assets.tracking.run._RETRY_SECONDS", (0.1,))
    tracking = open_tracking(server.uri, tmp_path)
    with tracking.run("tiny", kind="pretraining") as run:
        assert not run.run_id.startswith("spooled-")
        for first, mode in ((0, "up"), (10, "503"), (20, "lost"), (30, "up")):
            server.mode = mode
            for step in range(first, first + 10):
                run.log_metrics({"train/loss": float(step)}, step)
            time.sleep(0.5)  # longer than a flush, so that each fault is met
    assert sorted(losses(mlflow_uri, run.run_id)) == list(range(40))


def test_f40_down_at_the_end_is_completed_later(server: FaultyServer, tmp_path: Path, mlflow_uri: str):
    tracking = open_tracking(server.uri, tmp_path)
    started = time.monotonic()
    with tracking.run("tiny", kind="pretraining") as run:
        for step in range(10):
            run.log_metrics({"train/loss": 1.0}, step)
        server.mode = "hang"
    assert time.monotonic() - started < BUDGET + 2
    server.mode = "up"
    assert only_run(mlflow_uri).info.status == "RUNNING"
    deadline = time.monotonic() + 10
    while list(tmp_path.glob("spool/*/*")) and time.monotonic() < deadline:
        open_tracking(server.uri, tmp_path).replay()
        time.sleep(0.2)  # the run's own thread may hold its journal until its last call has failed
    assert only_run(mlflow_uri).info.status == "FINISHED"
    assert losses(mlflow_uri, run.run_id) == list(range(10))


def test_f40_a_closed_run_leaves_a_journal_that_anybody_can_send(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    release = Journal.release
    monkeypatch.setattr(Journal, "release", lambda self: (time.sleep(0.3), release(self))[1])
    server.mode, server.only = "lost", "runs/log-batch"
    train(open_tracking(server.uri, tmp_path), range(5))
    server.mode = "up"
    open_tracking(server.uri, tmp_path).replay()
    assert only_run(mlflow_uri).info.status == "FINISHED"


@pytest.mark.slow
def test_f40_a_locked_database_is_waited_for(mlflow_uri: str, tmp_path: Path):
    import sqlite3

    tracking = open_tracking(mlflow_uri, tmp_path)
    with tracking.run("tiny", kind="pretraining") as run:
        other = sqlite3.connect(tmp_path / "mlflow.db", check_same_thread=False, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(6.0, other.execute, ("COMMIT",)).start()  # longer than one call's own patience
        for step in range(10):
            run.log_metrics({"train/loss": 1.0}, step)
    assert losses(mlflow_uri, run.run_id) == list(range(10))
    other.close()


@pytest.mark.slow
def test_f40_an_impossible_database_is_given_up_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "folder.db").mkdir()
    run_id, seconds = train(open_tracking(f"sqlite:///{tmp_path}/folder.db", tmp_path), range(5))
    assert seconds < 60
    assert str(run_id).startswith("spooled-")
    assert "the rest waits in" in caplog.text


@pytest.mark.parametrize("path", ["runs/create", "runs/log-batch"])
def test_f40_lost_answers_are_not_sent_twice(path: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str):
    tracking = open_tracking(server.uri, tmp_path)
    tracking.open_experiment()
    server.mode, server.only = "lost", path
    train(tracking, range(5))
    server.mode = "up"
    open_tracking(server.uri, tmp_path).replay()
    assert not list(tmp_path.glob("spool/*/*"))
    assert losses(mlflow_uri, only_run(mlflow_uri).info.run_id) == list(range(5))


def test_f40_sigkill_leaves_a_journal_that_is_replayed(mlflow_uri: str, tmp_path: Path):
    import subprocess
    import sys

    script = (
        "import os, signal, sys, pathlib\n"
        "from yt8m_assets.tracking import MlflowTracking\n"
        "t = MlflowTracking(sys.argv[1], artifact_location=sys.argv[2], spool_path=pathlib.Path(sys.argv[3]))\n"
        "with t.run('killed', kind='pretraining') as run:\n"
        "    for step in range(20): run.log_metrics({'train/loss': 1.0}, step)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, mlflow_uri, str(tmp_path / "artifacts"), str(tmp_path / "spool")]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == -9
    tracking = open_tracking(mlflow_uri, tmp_path)
    run_id, _ = train(tracking, range(18, 25), resume_id=only_run(mlflow_uri).info.run_id)
    assert sorted(losses(mlflow_uri, run_id)) == list(range(25))
    assert only_run(mlflow_uri).data.tags["attempt"] == "2"


OPEN = b'{"op": "open", "name": "left behind", "tags": {}, "params": {}, "resume_id": null, "time": 1}\n'
LOSS = b'{"op": "metrics", "values": {"train/loss": 1.0}, "step": 7, "time": 1}\n'
CLOSE = b'{"op": "close", "status": "FINISHED", "time": 1}\n'
KILLED = """
import os, signal, sys, pathlib, time
from yt8m_assets.tracking import MlflowTracking
t = MlflowTracking(sys.argv[1], artifact_location=sys.argv[2], spool_path=pathlib.Path(sys.argv[3]))
with t.run("killed", kind="prediction") as run:
    while run.journal.pending:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_f40_a_killed_run_does_not_run_for_ever(mlflow_uri: str, tmp_path: Path):
    """All it said had arrived, and nobody resumes it: the next process ends it. One that is resumed goes on."""
    import subprocess
    import sys

    from mlflow import MlflowClient

    command = [sys.executable, "-c", KILLED, mlflow_uri, str(tmp_path / "artifacts"), str(tmp_path / "spool")]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == -9
    assert only_run(mlflow_uri).info.status == "RUNNING"
    tracking = open_tracking(mlflow_uri, tmp_path)
    with tracking.run("tiny", kind="prediction", resume_id=only_run(mlflow_uri).info.run_id) as resumed:
        while list((tmp_path / "spool").glob("*/*")) != [resumed.journal.folder]:
            time.sleep(0.01)
        assert only_run(mlflow_uri).info.status == "RUNNING"
    assert only_run(mlflow_uri).info.status == "FINISHED"
    MlflowClient(mlflow_uri).delete_run(only_run(mlflow_uri).info.run_id)
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == -9
    assert tracking.replay() == 1
    assert only_run(mlflow_uri).info.status == "KILLED"
    assert not list((tmp_path / "spool").glob("*/*"))


def test_f40_two_preemptions_without_a_server_become_one_run(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    """Whatever order the journals' names have: those of one second are named at random."""
    from yt8m_assets.training.interruption import TrainingPreempted

    names = iter(["20260101T000000-b", "20260101T000000-c", "20260101T000000-a"])
    monkeypatch.setattr(Spool, "create", lambda spool: Journal(spool.folder / next(names)))
    server.mode = "down"
    run_id = None
    for first in (0, 3):
        with (
            pytest.raises(TrainingPreempted),
            open_tracking(server.uri, tmp_path).run("tiny", kind="pretraining", resume_id=run_id) as run,
        ):
            for step in range(first, first + 3):
                run.log_metrics({"train/loss": 1.0}, step)
            raise TrainingPreempted("preempted")
        run_id = run.run_id
    server.mode = "up"
    train(open_tracking(server.uri, tmp_path), range(6, 9), resume_id=run_id)
    stored = only_run(mlflow_uri)
    assert losses(mlflow_uri, stored.info.run_id) == list(range(9))
    assert (stored.info.status, stored.data.tags["attempt"]) == ("FINISHED", "3")
    assert not list(tmp_path.glob("spool/*/*"))


def test_f40_an_unreadable_journal_does_not_block_the_others(
    mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A line in its middle costs that line, its beginning costs the journal, which is set aside and named."""
    tracking = open_tracking(mlflow_uri, tmp_path)
    for name, content in {
        "20260101T000000-a": b"\x00\x00\x00{\n" + CLOSE,
        "20260101T000000-b": OPEN + b"\xff\x00\n" + b'{"op": "of a later version"}\n' + LOSS + CLOSE,
        "20260101T000000-c": CLOSE,
    }.items():
        folder = tracking.spool.folder / name
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").write_bytes(content)
        (folder / "state.json").write_text('{"acked": "two"}')
    assert tracking.replay() == 1
    stored = only_run(mlflow_uri)
    assert (stored.info.run_name, stored.info.status) == ("left behind", "FINISHED")
    assert losses(mlflow_uri, stored.info.run_id) == [7]
    aside = sorted(path.name for path in tracking.spool.folder.iterdir())
    assert aside == ["20260101T000000-a", "20260101T000000-c"]
    assert f"{tracking.spool.folder / aside[0]}: cannot be read" in caplog.text
    caplog.clear()
    assert tracking.replay() == 0
    assert not caplog.text


def test_f42_a_deleted_experiment_is_named_and_its_runs_wait(
    mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    tracking = open_tracking(mlflow_uri, tmp_path)
    train(tracking, range(1))
    number = client.get_experiment_by_name("yt8m").experiment_id
    client.delete_experiment(number)
    _, seconds = train(open_tracking(mlflow_uri, tmp_path), range(3))
    assert seconds < 3
    assert "experiment 'yt8m' is deleted: bring it back with `mlflow experiments restore" in caplog.text
    (journal,) = (tmp_path / "spool").glob("*/*")
    assert str(journal) in caplog.text
    client.restore_experiment(number)
    assert open_tracking(mlflow_uri, tmp_path).replay() == 1
    runs = [run.info for run in client.search_runs([number])]
    assert sorted(len(losses(mlflow_uri, run.run_id)) for run in runs if run.status == "FINISHED") == [1, 3]


@pytest.mark.parametrize("mode", ["401", "403"])
def test_f41_refused_credentials_spool_with_one_warning(
    mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, caplog: pytest.LogCaptureFixture
):
    server.mode = mode
    uri = server.uri.replace("http://", "http://user:canary-7731@")
    with open_tracking(uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 0.5}, 1)
    assert run.untracked
    assert "credentials" in caplog.text
    assert "canary" not in caplog.text
    assert list(tmp_path.glob("spool/*/*/journal.jsonl"))
    server.mode = "up"
    assert open_tracking(uri, tmp_path).replay() == 1
    assert "refused our credentials" in only_run(mlflow_uri).data.tags["untracked"]


def test_f42_changed_parameters_open_a_linked_child(mlflow_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    tracking = open_tracking(mlflow_uri, tmp_path)
    parent_id, _ = train(tracking, range(3), params={"rate": 0.1, "batch": 8})
    same_id, _ = train(tracking, range(2, 5), params={"rate": 0.1, "batch": 8, "new": 1}, resume_id=parent_id)
    child_id, _ = train(tracking, range(5, 7), params={"rate": 0.2, "batch": 8}, resume_id=parent_id)
    assert same_id == parent_id
    assert child_id != parent_id
    client = MlflowClient(mlflow_uri)
    parent, child = client.get_run(parent_id), client.get_run(child_id)
    assert losses(mlflow_uri, parent_id) == [0, 1, 2, 3, 4]
    assert parent.info.status == child.info.status == "FINISHED"
    assert parent.data.params == {"rate": "0.1", "batch": "8", "new": "1"}
    assert parent.data.tags["attempt"] == "2"
    assert child.data.tags["mlflow.parentRunId"] == parent_id
    assert child.data.tags["attempt"] == "3"
