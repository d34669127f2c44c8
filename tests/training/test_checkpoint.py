import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from yt8m_assets.assets.models import AFRESH_TAG
from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, StorageError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore, CheckpointWriter, HostCopy

IDENTITY: dict[str, Any] = {"config": {"batch_size": 8, "overrides": {"hidden_size": 16}}, "parents": {"shards": "d1"}}


def checkpoint(value: float) -> Checkpoint:
    return Checkpoint({"value": value}, {"model": {"w": torch.full((3,), value)}, "optimizer": {"m/w": torch.ones(3)}})


def open_checkpoints(folder: Path, identity: dict[str, Any] | None = None) -> CheckpointStore:
    return CheckpointStore(ArtifactStore(str(folder), folder / "cache"), "checkpoints/a/m", identity or IDENTITY)


def test_the_newest_is_read_back_whole(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.latest() is None
    assert checkpoints.peek() is None
    for step in (5, 10, 100):
        checkpoints.save(step, checkpoint(step))
    found = open_checkpoints(tmp_path).latest()
    assert found is not None
    assert found.state == {"value": 100}
    assert torch.equal(found.groups["model"]["w"], torch.full((3,), 100.0))
    assert torch.equal(found.groups["optimizer"]["m/w"], torch.ones(3))
    assert open_checkpoints(tmp_path).peek() == {"value": 100}


def test_they_can_be_sent_to_another_process(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(5, checkpoint(5))
    sent = ForkingPickler.loads(bytes(ForkingPickler.dumps(checkpoints)))
    assert (sent.peek(), sent.fingerprint) == ({"value": 5}, checkpoints.fingerprint)


def test_two_are_kept_and_the_best_apart(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    for step in range(1, 6):
        checkpoints.save(step, checkpoint(step))
        if step == 2:
            checkpoints.save_best(checkpoint(step))
    keys = checkpoints.store.list_keys("checkpoints/a/m")
    assert [key.rsplit("/", 1)[-1] for key in keys] == ["best", "step-00000004", "step-00000005"]
    best = checkpoints.best()
    assert best is not None
    assert best.state == {"value": 2}
    checkpoints.discard()
    assert checkpoints.store.list_keys("checkpoints/a/m") == []
    assert checkpoints.best() is None


def test_a_failed_clean_up_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, checkpoint(1))
    checkpoints.save(2, checkpoint(2))

    def refuse(key: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.store, "delete", refuse)
    checkpoints.save(3, checkpoint(3))
    assert "cannot remove old checkpoint checkpoints/a/m/step-00000001" in caplog.text
    found = checkpoints.latest()
    assert found is not None
    assert found.state == {"value": 3}


def test_leftovers_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, checkpoint(1))
    half = tmp_path / "checkpoints/a/m/step-00000002/.tmp-1234"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    checkpoints.sweep()
    assert not half.parent.exists()
    found = checkpoints.latest()
    assert found is not None
    assert found.state == {"value": 1}


def test_a_difference_is_described_field_by_field(tmp_path: Path) -> None:
    open_checkpoints(tmp_path, {"a": 1, "n": {"x": 5, "y": 3}, "old": 6, "none": None}).save(1, checkpoint(1))
    with pytest.raises(CheckpointMismatchError) as caught:
        open_checkpoints(tmp_path, {"a": 1, "n": {"x": 2, "y": 3}, "new": 4}).latest()
    assert str(caught.value).splitlines()[1:] == [
        "  n.x: the checkpoint has 5, this run has 2",
        "  new: the checkpoint has None, this run has 4",
        "  old: the checkpoint has 6, this run has None",
    ]


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    open_checkpoints(tmp_path).save(1, checkpoint(1))
    other = open_checkpoints(tmp_path, {**IDENTITY, "parents": {"shards": "d2"}})
    expected = rf"parents\.shards: the checkpoint has .d1., this run has .d2.\n.*--start-afresh; .* {AFRESH_TAG}: true"
    with pytest.raises(CheckpointMismatchError, match=expected):
        other.refuse_others()
    assert other.peek() is None
    with pytest.raises(CheckpointMismatchError, match=r"parents\.shards"):
        other.latest()
    open_checkpoints(tmp_path).refuse_others()


def test_a_single_damaged_checkpoint_says_how_to_start_again(tmp_path: Path) -> None:
    open_checkpoints(tmp_path).save(1, checkpoint(1))
    [path] = tmp_path.glob("checkpoints/a/m/step-00000001/*/model.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=r"there is no older one: delete .*checkpoints/a/m to start again"):
        open_checkpoints(tmp_path).latest(allow_fallback=True)


def test_damaged_best_weights_say_how_to_start_again(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save_best(checkpoint(1))
    (file,) = tmp_path.glob("checkpoints/a/m/best/*/model.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CorruptArtifactError, match=r"best weights .*; delete .*checkpoints/a/m to start this training"):
        open_checkpoints(tmp_path).best()


class Gate:
    """Holds every write of a kind up until it is opened; notes which have begun and which are done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.open, self.events = threading.Event(), []  # type: ignore[var-annotated]
        for name in names:
            monkeypatch.setattr(CheckpointStore, name, self.gated(name, getattr(CheckpointStore, name)))

    def gated(self, name: str, method: Any) -> Any:
        def held(store: CheckpointStore, *arguments: Any) -> None:
            label = str(arguments[0]) if name == "save" else "best"
            self.events.append(f"begin {label}")
            assert self.open.wait(30)
            method(store, *arguments)
            self.events.append(f"end {label}")

        return held


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = open_checkpoints(tmp_path)
    gate, writer = Gate(monkeypatch, "save"), CheckpointWriter(checkpoints)
    weights, state = torch.ones(3), {"history": [1]}
    writer.save(1, Checkpoint(state, {"model": {"w": weights}}))  # returns although nothing is written yet
    weights += 1
    state["history"].append(2)
    assert checkpoints.latest() is None
    gate.open.set()
    writer.wait()
    found = checkpoints.latest()
    assert found is not None
    assert found.state == {"history": [1]}
    assert found.groups["model"]["w"].tolist() == [1, 1, 1]
    writer.close()


def test_one_write_at_a_time_in_order_and_the_next_checkpoint_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = open_checkpoints(tmp_path)
    gate, writer = Gate(monkeypatch, "save", "save_best"), CheckpointWriter(checkpoints)
    content = {"model": {"w": torch.ones(3)}}
    writer.save_best(Checkpoint({}, content))
    writer.save(1, Checkpoint({}, content))
    second = threading.Thread(target=writer.save, args=(2, Checkpoint({}, content)))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert gate.events == ["begin best"]
    gate.open.set()
    second.join(30)
    writer.wait()
    assert gate.events == [f"{what} {name}" for name in ("best", "1", "2") for what in ("begin", "end")]
    writer.close()


def test_the_copy_uses_its_memory_again() -> None:
    copied = HostCopy()
    first = copied.take({"model": {"w": torch.ones(3)}})["model"]["w"].data_ptr()
    second = copied.take({"model": {"w": torch.zeros(3)}})["model"]["w"]
    assert (second.data_ptr(), second.tolist()) == (first, [0, 0, 0])


def test_after_a_failed_write_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint that speaks of best weights which were not written would lead the rerun to older ones."""
    checkpoints = open_checkpoints(tmp_path)
    waiting = threading.Event()

    def full(store: CheckpointStore, checkpoint: Checkpoint) -> None:
        assert waiting.wait(30)
        raise StorageError("no space left")

    monkeypatch.setattr(CheckpointStore, "save_best", full)
    writer = CheckpointWriter(checkpoints)
    writer.save_best(Checkpoint({}))
    writer.save(1, Checkpoint({}))
    waiting.set()
    with pytest.raises(StorageError, match="no space left"):
        writer.wait()
    with pytest.raises(StorageError, match="no space left"):
        writer.check()
    writer.close()
    assert checkpoints.latest() is None
    assert "a checkpoint was not written: no space left" in caplog.text
