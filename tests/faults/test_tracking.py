"""Rows F14 and F40-F42 of RELIABILITY.md: losing the tracking server never loses training, and nothing it said."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest

from tests.faults.tracking_server import FaultyServer
from tests.faults.tracking_support import (
    BUDGET,
    assert_complete,
    everything,
    losses,
    only_run,
    open_tracking,
    publish,
    synced,
    train,
)
from yt8m_assets.storage import ArtifactStore


def test_f14_non_finite_metrics_become_tags(mlflow_uri: str, tmp_path: Path):
    with open_tracking(mlflow_uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": float("inf"), "other": float("nan"), "fine@3": 0.5}, 7)
    stored = only_run(mlflow_uri)
    assert stored.data.metrics == {"fine_3": 0.5}
    assert stored.data.tags["nonfinite/train/loss"] == "inf at step 7"
    assert stored.data.tags["nonfinite/other"] == "nan at step 7"


def test_f40_closed_port_costs_less_than_the_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracking = open_tracking("http://user:canary-7731@127.0.0.1:9", tmp_path)
    run, seconds = train(tracking, range(50))
    assert seconds < BUDGET + 2
    assert (run.run_id, run.url) == (None, None)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) <= 2
    assert "yt8m sync-mlflow" in caplog.text
    assert "canary" not in caplog.text + repr(tracking) + json.dumps(run.state())


@pytest.mark.parametrize("registers", [False, True])
def test_f40_hanging_server_costs_less_than_the_budget(
    registers: bool, server: FaultyServer, tmp_path: Path, store: ArtifactStore
):
    server.mode = "hang"
    tracking, started = open_tracking(server.uri, tmp_path), time.monotonic()
    _ = publish(store, tracking, range(50)) if registers else train(tracking, range(50))
    assert time.monotonic() - started < BUDGET + 2


@pytest.mark.parametrize("mode", ["503", "401", "hang"])
def test_f40_a_server_dead_for_the_whole_training_is_completed_by_sync(
    mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, store: ArtifactStore
):
    server.mode = mode
    publish(store, open_tracking(server.uri, tmp_path), range(5))
    server.mode = "up"
    assert synced(store, server.uri, tmp_path) == {"made": 1}
    assert_complete(mlflow_uri, range(5))
    before = everything(mlflow_uri)
    assert synced(store, server.uri, tmp_path) == {"complete": 1}
    assert everything(mlflow_uri) == before


def test_f40_a_server_that_comes_up_during_the_run_gets_all_of_it(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, quick: None, caplog: pytest.LogCaptureFixture
):
    server.mode = "503"
    threading.Timer(1.0, lambda: setattr(server, "mode", "up")).start()
    with open_tracking(server.uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        deadline = time.monotonic() + 10
        while run.run_id is None and time.monotonic() < deadline:
            time.sleep(0.05)
    assert losses(mlflow_uri, only_run(mlflow_uri).info.run_id) == [0]
    assert only_run(mlflow_uri).info.status == "FINISHED"
    assert "has not taken all" not in caplog.text


def test_f40_down_in_the_middle_loses_and_repeats_nothing(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, quick: None
):
    tracking = open_tracking(server.uri, tmp_path)
    with tracking.run("tiny", kind="pretraining") as run:
        assert run.run_id is not None
        for first, mode in ((0, "up"), (10, "503"), (20, "lost"), (30, "up")):
            server.mode = mode
            for step in range(first, first + 10):
                run.log_metrics({"train/loss": float(step)}, step)
            time.sleep(0.5)  # longer than a flush, so that each fault is met
    assert losses(mlflow_uri, run.run_id) == list(range(40))


@pytest.mark.parametrize("mode", ["hang", "503", "lost"])
def test_f40_down_at_the_end_is_completed_by_sync(
    mode: str,
    server: FaultyServer,
    tmp_path: Path,
    mlflow_uri: str,
    store: ArtifactStore,
    caplog: pytest.LogCaptureFixture,
):
    tracking = open_tracking(server.uri, tmp_path)
    started = time.monotonic()
    with (
        store.publish("pretrained_model/tiny", fingerprint="f") as publication,
        tracking.run("tiny", kind="pretraining") as run,
    ):
        for step in range(10):
            run.log_metrics({"train/loss": 1.0}, step)
        server.mode = mode
        run.keep(publication.path)
    assert time.monotonic() - started < BUDGET + 2
    if mode != "lost":  # where only answers are, all may have arrived
        assert "the server has not taken all of run 'tiny'" in caplog.text
    server.mode = "up"
    deadline = time.monotonic() + 10
    while synced(store, server.uri, tmp_path) == {"running": 1} and time.monotonic() < deadline:
        time.sleep(0.2)
    found = only_run(mlflow_uri)  # made by the run itself or, where the server was gone before that, by the sync
    assert found.info.status == "FINISHED"
    assert losses(mlflow_uri, found.info.run_id) == list(range(10))


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
    run, seconds = train(open_tracking(f"sqlite:///{tmp_path}/folder.db", tmp_path), range(5))
    assert seconds < 60
    assert run.run_id is None
    assert "yt8m sync-mlflow" in caplog.text


@pytest.mark.parametrize("path", ["runs/create", "log-batch", "runs/update", "model-versions/create", "log-inputs"])
def test_f40_lost_answers_are_not_sent_twice(
    path: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, store: ArtifactStore
):
    tracking = open_tracking(server.uri, tmp_path)
    tracking.open_experiment()
    server.mode, server.only = "lost", path
    publish(store, tracking, range(5))
    server.mode = "up"
    synced(store, server.uri, tmp_path)
    assert_complete(mlflow_uri, range(5))


@pytest.mark.parametrize("mode", ["401", "403"])
def test_f41_refused_credentials_cost_one_warning(
    mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, caplog: pytest.LogCaptureFixture, quick: None
):
    server.mode = mode
    uri = server.uri.replace("http://", "http://user:canary-7731@")
    with open_tracking(uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 0.5}, 1)
        assert run.record.tags["untracked"] == "the server refused our credentials at first; sent later"
        server.mode = "up"
        deadline = time.monotonic() + 10
        while run.run_id is None and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "credentials" in caplog.text
    assert "canary" not in caplog.text + json.dumps(run.state())
    assert "refused our credentials" in only_run(mlflow_uri).data.tags["untracked"]


def test_f42_changed_parameters_open_a_linked_child(mlflow_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    tracking = open_tracking(mlflow_uri, tmp_path)
    parent, _ = train(tracking, range(3), params={"rate": 0.1, "batch": 8})
    state = parent.state()
    same, _ = train(tracking, range(2, 5), params={"rate": 0.1, "batch": 8, "new": 1}, resume=state)
    changed, _ = train(tracking, range(5, 7), params={"rate": 0.2, "batch": 8}, resume=same.state())
    assert same.run_id == parent.run_id
    assert changed.run_id != parent.run_id
    client = MlflowClient(mlflow_uri)
    first, child = client.get_run(parent.run_id), client.get_run(changed.run_id)
    assert losses(mlflow_uri, parent.run_id) == [0, 1, 2, 3, 4]
    assert first.info.status == child.info.status == "FINISHED"
    assert first.data.params == {"rate": "0.1", "batch": "8", "new": "1"}
    assert first.data.tags["attempt"] == "2"
    assert child.data.tags["mlflow.parentRunId"] == parent.run_id
    assert child.data.tags["attempt"] == "3"
