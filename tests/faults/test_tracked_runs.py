"""Rows F40 and F42 of RELIABILITY.md: runs that were killed, taken over, deleted or synced are whole and there once."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tracking_server import FaultyServer
from tests.faults.tracking_support import (
    all_runs,
    assert_complete,
    kill_one,
    losses,
    only_run,
    open_tracking,
    publish,
    train,
)
from yt8m_assets.errors import PartitionBusyError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullTracking
from yt8m_assets.tracking.sync import sync


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


def test_f40_an_artifact_without_a_record_is_left_out_and_named(
    mlflow_uri: str, tmp_path: Path, store: ArtifactStore, caplog: pytest.LogCaptureFixture
):
    """Of a version that kept no records; what never was a run is nobody's loss."""
    publish(store, NullTracking(), range(3), "new")
    for key, metadata in (("pretrained_model/tiny", {"mlflow_run_id": "4711"}), ("test_ranking/tiny", {})):
        with store.publish(key, fingerprint="old") as publication:
            (publication.path / "file").write_text("content")
            publication.metadata.update(metadata)
    assert sync(store, open_tracking(mlflow_uri, tmp_path)) == {"made": 1}
    assert "pretrained_model/tiny (generation 1) holds no record of its run 4711" in caplog.text
    assert "test_ranking" not in caplog.text


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


def test_f40_tags_that_somebody_has_edited_keep_no_run_from_the_server(
    mlflow_uri: str, tmp_path: Path, store: ArtifactStore
):
    """When another run was last heard of, and how good the champion is: texts on a page that anybody may change."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri, mlflow_uri)
    with open_tracking(mlflow_uri, tmp_path).run("other", kind="prediction") as other:
        other.flush()
        client.set_tag(other.run_id, "yt8m.process", "elsewhere 7 1.00")
        client.set_tag(other.run_id, "yt8m.alive", "a while ago")
        for number, metric in enumerate(("high", "nan", "-inf")):
            publish(store, NullTracking(), range(number + 1), f"f{number}")
            assert sync(store, open_tracking(mlflow_uri, tmp_path))["made"] == 1
            champion = client.get_model_version_by_alias("yt8m-tiny", "champion")
            assert champion.tags["fingerprint"] == f"f{number}"
            client.set_model_version_tag("yt8m-tiny", champion.version, "metric", metric)
        assert client.get_run(other.run_id).info.status == "KILLED"
