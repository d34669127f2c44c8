"""Rows F14 and F40-F42 of RELIABILITY.md: losing the tracking server never loses training, and nothing it said."""

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tracking_server import FaultyServer, faulty_server
from yt8m_assets.errors import PartitionBusyError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import MlflowTracking, NullTracking
from yt8m_assets.tracking.sync import sync

BUDGET = 6.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with faulty_server(mlflow_uri, str(tmp_path / "artifacts"), monkeypatch) as started:
        yield started


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send and try again at once."""
    monkeypatch.setattr("yt8m_assets.tracking.live.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("yt8m_assets.tracking.live._RETRY_SECONDS", (0.1,))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")


def open_tracking(uri: str, tmp_path: Path) -> MlflowTracking:
    return MlflowTracking(uri, artifact_location=str(tmp_path / "artifacts"), budget_seconds=BUDGET)


def train(tracking: MlflowTracking, steps: range, **options) -> tuple[Any, float]:
    """A short "training" with a metric a step; the run and the seconds it took."""
    started = time.monotonic()
    with tracking.run("tiny", kind="pretraining", model="tiny", **options) as run:
        for step in steps:
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    return run, time.monotonic() - started


def publish(store: ArtifactStore, tracking: Any, steps: range, fingerprint: str = "f", **options) -> Any:
    """A training that ends with an artifact: points, a picture, a data set and a registered model; the run."""
    with store.publish(f"finetuned_model/{fingerprint}", fingerprint=fingerprint) as publication:
        tags = {"fingerprint": fingerprint, **options.pop("tags", {})}
        with tracking.run("tiny", kind="finetuning", model="tiny", params={"a": 1}, tags=tags, **options) as run:
            for step in steps:
                run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
            (publication.path / "weights.bin").write_bytes(b"weights")
            picture = publication.report_path / "loss.png"
            picture.write_bytes(b"picture")
            run.log_artifact(picture, "report")
            run.log_dict({"steps": len(steps)}, "summary.json")
            run.log_dataset("shards", digest="d" * 64, source_uri="gs://bucket/shards", context="training")
            run.register_model("yt8m-tiny", publication.path, metric=float(len(steps)), description="Tiny.")
            run.keep(publication.path)
    return run


def losses(mlflow_uri: str, run_id: str) -> list[int]:
    from mlflow import MlflowClient

    return sorted(point.step for point in MlflowClient(mlflow_uri).get_metric_history(run_id, "train/loss"))


def all_runs(mlflow_uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri)
    return list(client.search_runs([client.get_experiment_by_name("yt8m").experiment_id]))


def only_run(mlflow_uri: str) -> Any:
    (run,) = all_runs(mlflow_uri)
    return run


def assert_complete(mlflow_uri: str, steps: range) -> None:
    """The one run holds all that `publish` said, once."""
    from mlflow import MlflowClient

    client, run = MlflowClient(mlflow_uri, mlflow_uri), only_run(mlflow_uri)
    assert run.info.status == "FINISHED"
    assert losses(mlflow_uri, run.info.run_id) == list(steps)
    assert run.data.params == {"a": "1"}
    assert run.data.tags["mlflow.note.content"].endswith("Tiny.")
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["shards"]
    names = {entry.path for folder in ("", "report") for entry in client.list_artifacts(run.info.run_id, folder)}
    assert names == {"model", "report", "report/loss.png", "summary.json"}
    assert "model/weights.bin" in {entry.path for entry in client.list_artifacts(run.info.run_id, "model")}
    (version,) = client.search_model_versions("name = 'yt8m-tiny'")
    assert version.run_id == run.info.run_id
    assert str(client.get_model_version_by_alias("yt8m-tiny", "champion").version) == str(version.version)


def everything(mlflow_uri: str) -> dict[str, Any]:
    """All rows of the server's database, but for when a run's process was last heard of."""
    import sqlite3

    with sqlite3.connect(mlflow_uri.removeprefix("sqlite:///")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for name in names}
    database.close()
    return rows


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
    assert sync(store, open_tracking(server.uri, tmp_path)) == {"made": 1}
    assert_complete(mlflow_uri, range(5))
    before = everything(mlflow_uri)
    assert sync(store, open_tracking(server.uri, tmp_path)) == {"complete": 1}
    assert everything(mlflow_uri) == before


def test_f40_a_server_that_comes_up_during_the_run_gets_all_of_it(
    server: FaultyServer, tmp_path: Path, mlflow_uri: str, store: ArtifactStore, quick: None
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
    mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, store: ArtifactStore
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
    server.mode = "up"
    deadline = time.monotonic() + 10
    while sync(store, open_tracking(server.uri, tmp_path)) == {"running": 1} and time.monotonic() < deadline:
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
    sync(store, open_tracking(server.uri, tmp_path))
    assert_complete(mlflow_uri, range(5))


KILLED = """
import json, os, signal, sys, pathlib, time
from yt8m_assets.tracking import MlflowTracking
t = MlflowTracking(sys.argv[1], artifact_location=sys.argv[2])
with t.run("killed", kind="prediction", tags={"fingerprint": "f"}) as run:
    for step in range(20):
        run.log_metrics({"train/loss": 1.0}, step)
        if step == 9:
            pathlib.Path(sys.argv[3]).write_text(json.dumps(run.state()))
    run.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_one(mlflow_uri: str, tmp_path: Path) -> dict[str, Any]:
    """A process that dies after 20 steps; the state that its checkpoint of the tenth holds."""
    command = [sys.executable, "-c", KILLED, mlflow_uri, str(tmp_path / "artifacts"), str(tmp_path / "state.json")]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == -9
    return dict(json.loads((tmp_path / "state.json").read_text()))


def test_f40_after_sigkill_the_run_goes_on_and_no_point_is_there_twice(mlflow_uri: str, tmp_path: Path):
    state = kill_one(mlflow_uri, tmp_path)
    run, _ = train(open_tracking(mlflow_uri, tmp_path), range(10, 25), resume=state)
    stored = only_run(mlflow_uri)
    assert (stored.info.run_id, stored.info.status, stored.data.tags["attempt"]) == (run.run_id, "FINISHED", "2")
    assert losses(mlflow_uri, run.run_id) == list(range(25))


def test_f40_a_checkpoint_completes_what_the_server_has_lost(mlflow_uri: str, tmp_path: Path):
    """A point that never arrived, because the process died, is in the checkpoint."""
    from mlflow import MlflowClient

    state = kill_one(mlflow_uri, tmp_path)
    MlflowClient(mlflow_uri).delete_run(only_run(mlflow_uri).info.run_id)
    run, _ = train(open_tracking(mlflow_uri, tmp_path), range(10, 15), resume=state)
    assert losses(mlflow_uri, run.run_id) == list(range(15))


def test_f40_a_killed_run_does_not_run_for_ever(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    """The next process that opens a run ends it, or a sync does."""
    kill_one(mlflow_uri, tmp_path)
    (killed,) = all_runs(mlflow_uri)
    assert killed.info.status == "RUNNING"
    train(open_tracking(mlflow_uri, tmp_path), range(1))
    statuses = {run.info.run_name: run.info.status for run in all_runs(mlflow_uri)}
    assert statuses == {"killed": "KILLED", "tiny": "FINISHED"}
    kill_one(mlflow_uri, tmp_path)
    sync(store, open_tracking(mlflow_uri, tmp_path))
    assert sorted(run.info.status for run in all_runs(mlflow_uri)) == ["FINISHED", "KILLED", "KILLED"]


def test_f40_a_run_that_is_open_is_left_alone(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    """By others of this machine, and by a process of another machine while it is heard of."""
    from mlflow import MlflowClient

    client, tracking = MlflowClient(mlflow_uri), open_tracking(mlflow_uri, tmp_path)
    with tracking.run("open", kind="prediction") as run:
        sync(store, tracking)
        assert only_run(mlflow_uri).info.status == "RUNNING"
    client.update_run(run.run_id, status="RUNNING")
    client.set_tag(run.run_id, "yt8m.process", "elsewhere 7 1.00")
    client.set_tag(run.run_id, "yt8m.alive", str(int(time.time() * 1000)))
    sync(store, tracking)
    assert only_run(mlflow_uri).info.status == "RUNNING"
    client.set_tag(run.run_id, "yt8m.alive", str(int(time.time() * 1000) - 600_000))
    sync(store, tracking)
    assert only_run(mlflow_uri).info.status == "KILLED"


@pytest.mark.parametrize("mode", ["down", "up"])
def test_f40_two_preemptions_become_one_run(mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str):
    """With a server that sees all three parts, and with one that sees the last."""
    from yt8m_assets.training.interruption import TrainingPreempted

    server.mode, state = mode, None
    for first in (0, 3):
        with (
            pytest.raises(TrainingPreempted),
            open_tracking(server.uri, tmp_path).run("tiny", kind="pretraining", resume=state) as run,
        ):
            for step in range(first, first + 3):
                run.log_metrics({"train/loss": 1.0}, step)
            raise TrainingPreempted("preempted")
        state = json.loads(json.dumps(run.state()))
    server.mode = "up"
    train(open_tracking(server.uri, tmp_path), range(6, 9), resume=state)
    stored = only_run(mlflow_uri)
    assert losses(mlflow_uri, stored.info.run_id) == list(range(9))
    assert (stored.info.status, stored.data.tags["attempt"]) == ("FINISHED", "3")


def test_f40_two_attempts_at_once_are_two_runs(mlflow_uri: str, tmp_path: Path):
    """Both go on from one checkpoint: the second leaves the first one's run alone, and says where it came from."""
    first_state = train(open_tracking(mlflow_uri, tmp_path), range(3))[0].state()
    with open_tracking(mlflow_uri, tmp_path).run("tiny", kind="pretraining", resume=first_state) as first:
        from mlflow import MlflowClient

        MlflowClient(mlflow_uri).set_tag(first.run_id, "yt8m.process", f"elsewhere {first.run_id} 1.00")
        second, _ = train(open_tracking(mlflow_uri, tmp_path), range(3, 6), resume=first_state)
        MlflowClient(mlflow_uri).set_tag(first.run_id, "yt8m.process", first._mirror.owner)
        for step in range(3, 6):
            first.log_metrics({"train/loss": 1.0}, step)
    assert first.run_id != second.run_id
    for run in (first, second):
        assert losses(mlflow_uri, run.run_id) == list(range(6))
    child = next(run for run in all_runs(mlflow_uri) if run.info.run_id == second.run_id)
    assert child.data.tags["mlflow.parentRunId"] == first.run_id


def test_f40_a_run_that_another_process_takes_over_goes_on_as_its_child(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
):
    from mlflow import MlflowClient

    monkeypatch.setattr("yt8m_assets.tracking.live.BEAT_SECONDS", 0.1)
    with open_tracking(mlflow_uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        run.flush()
        taken = run.run_id
        MlflowClient(mlflow_uri).set_tag(taken, "yt8m.process", "elsewhere 7 1.00")
        deadline = time.monotonic() + 10
        while run.run_id == taken and time.monotonic() < deadline:
            time.sleep(0.05)
        run.log_metrics({"train/loss": 1.0}, 1)
    assert run.run_id != taken
    assert (losses(mlflow_uri, taken), losses(mlflow_uri, run.run_id)) == ([0], [0, 1])


def test_f42_a_deleted_experiment_is_named_at_once_and_sync_completes_it_when_it_is_back(
    mlflow_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: ArtifactStore
):
    from mlflow import MlflowClient

    from yt8m_assets.tracking.errors import DeletedExperimentError

    client, tracking = MlflowClient(mlflow_uri), open_tracking(mlflow_uri, tmp_path)
    number = tracking.open_experiment()
    client.delete_experiment(number)
    started = time.monotonic()
    publish(store, open_tracking(mlflow_uri, tmp_path), range(3))
    assert time.monotonic() - started < 3
    assert "experiment 'yt8m' is deleted: bring it back with `mlflow experiments restore" in caplog.text
    assert "yt8m sync-mlflow" in caplog.text
    with pytest.raises(DeletedExperimentError):
        sync(store, open_tracking(mlflow_uri, tmp_path))
    client.restore_experiment(number)
    sync(store, open_tracking(mlflow_uri, tmp_path))
    assert_complete(mlflow_uri, range(3))


def test_f42_an_experiment_deleted_under_a_run_costs_it_nothing(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    from mlflow import MlflowClient

    client, tracking = MlflowClient(mlflow_uri), open_tracking(mlflow_uri, tmp_path)
    number, started = tracking.open_experiment(), time.monotonic()
    with (
        store.publish("pretrained_model/tiny", fingerprint="f") as publication,
        tracking.run("tiny", kind="pretraining") as run,
    ):
        client.delete_experiment(number)
        run.log_metrics({"train/loss": 1.0}, 0)
        run.keep(publication.path)
    assert time.monotonic() - started < 6
    client.restore_experiment(number)
    sync(store, tracking)
    assert losses(mlflow_uri, only_run(mlflow_uri).info.run_id) == [0]


def test_f42_a_run_deleted_while_it_is_open_is_made_again(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    from mlflow import MlflowClient

    with open_tracking(mlflow_uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        run.flush()
        deleted = run.run_id
        MlflowClient(mlflow_uri).delete_run(deleted)
        run.log_metrics({"train/loss": 1.0}, 1)
        run.flush()
    assert only_run(mlflow_uri).info.run_id != deleted
    assert losses(mlflow_uri, only_run(mlflow_uri).info.run_id) == [0, 1]


def test_f42_sync_leaves_a_run_deleted_that_a_person_has_deleted(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    from mlflow import MlflowClient

    tracking = open_tracking(mlflow_uri, tmp_path)
    publish(store, tracking, range(3))
    MlflowClient(mlflow_uri).delete_run(only_run(mlflow_uri).info.run_id)
    assert sync(store, tracking) == {"deleted": 1}
    assert not all_runs(mlflow_uri)
    assert sync(store, tracking, restore=True) == {"completed": 1}
    assert_complete(mlflow_uri, range(3))


def test_f40_a_damaged_artifact_keeps_no_other_run_from_the_server(
    mlflow_uri: str, tmp_path: Path, store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    for fingerprint in ("bad", "good"):
        publish(store, NullTracking(), range(3), fingerprint)
    (path,) = tmp_path.glob("store/finetuned_model/bad/*/report/loss.png")
    path.write_bytes(b"another")
    found = sync(ArtifactStore(str(tmp_path / "store"), tmp_path / "cache"), open_tracking(mlflow_uri, tmp_path))
    assert found == {"damaged": 1, "made": 1}
    assert "loss.png" in caplog.text
    assert only_run(mlflow_uri).data.tags["fingerprint"] == "good"


def test_f40_a_person_s_choices_on_the_server_stand(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    """A description that was written there, and a champion that was chosen there."""
    from mlflow import MlflowClient

    client, tracking = MlflowClient(mlflow_uri, mlflow_uri), open_tracking(mlflow_uri, tmp_path)
    first = publish(store, tracking, range(3), "first")
    publish(store, tracking, range(2), "second")
    client.set_tag(first.run_id, "mlflow.note.content", "my own words")
    client.set_registered_model_alias("yt8m-tiny", "champion", "2")
    assert sync(store, tracking) == {"complete": 2}
    assert client.get_run(first.run_id).data.tags["mlflow.note.content"] == "my own words"
    assert str(client.get_model_version_by_alias("yt8m-tiny", "champion").version) == "2"


def test_f40_an_old_model_that_is_made_up_for_does_not_dethrone_one_of_newer_ratings(
    mlflow_uri: str, tmp_path: Path, store: ArtifactStore
):
    from mlflow import MlflowClient

    tracking = open_tracking(mlflow_uri, tmp_path)
    publish(store, NullTracking(), range(5), "old", tags={"parent.holdout_ratings": "a"})
    publish(store, tracking, range(2), "new", tags={"parent.holdout_ratings": "b"})
    assert sync(store, tracking) == {"made": 1, "complete": 1}
    champion = MlflowClient(mlflow_uri, mlflow_uri).get_model_version_by_alias("yt8m-tiny", "champion")
    assert champion.tags["fingerprint"] == "new"


def test_f40_a_half_trained_model_is_shown_from_its_checkpoint(mlflow_uri: str, tmp_path: Path, store: ArtifactStore):
    with NullTracking().run("half", kind="pretraining") as run:
        run.log_metrics({"train/loss": 1.0}, 4)
    with store.publish("checkpoints/pretrained_model/tiny/step-00000004", fingerprint="f", scratch=True) as publication:
        (publication.path / "state.json").write_text(json.dumps({"loop": {}, "run": run.state()}))
    for found in ({"made": 1}, {"complete": 1}):
        assert sync(store, open_tracking(mlflow_uri, tmp_path)) == found
    assert only_run(mlflow_uri).info.status == "KILLED"
    assert losses(mlflow_uri, only_run(mlflow_uri).info.run_id) == [4]


def test_f40_two_syncs_at_once_send_nothing_twice(
    mlflow_uri: str, tmp_path: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
):
    publish(store, NullTracking(), range(3))
    tracking = open_tracking(mlflow_uri, tmp_path)
    refused = []

    def meanwhile(server: Any) -> None:
        with pytest.raises(PartitionBusyError, match="sync-mlflow"):
            sync(store, tracking)
        refused.append(True)

    monkeypatch.setattr("yt8m_assets.tracking.sync.end_dead_runs", meanwhile)
    assert sync(store, tracking) == {"made": 1}
    assert refused
    assert_complete(mlflow_uri, range(3))


@pytest.mark.parametrize("mode", ["401", "403"])
def test_f41_refused_credentials_cost_one_warning(
    mode: str, server: FaultyServer, tmp_path: Path, mlflow_uri: str, caplog: pytest.LogCaptureFixture, quick: None
):
    server.mode = mode
    uri = server.uri.replace("http://", "http://user:canary-7731@")
    with open_tracking(uri, tmp_path).run("tiny", kind="pretraining") as run:
        run.log_metrics({"train/loss": 0.5}, 1)
        assert run.untracked
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
