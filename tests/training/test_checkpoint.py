from pathlib import Path
from typing import Any

import pytest
import torch

from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore, describe_difference

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


def test_a_difference_is_described_field_by_field() -> None:
    lines = describe_difference({"a": 1, "n": {"x": 2, "y": 3}, "new": 4}, {"a": 1, "n": {"x": 5, "y": 3}, "old": 6})
    assert lines == [
        "n.x: the checkpoint has 5, this run has 2",
        "new: the checkpoint has None, this run has 4",
        "old: the checkpoint has 6, this run has None",
    ]


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    open_checkpoints(tmp_path).save(1, checkpoint(1))
    other = open_checkpoints(tmp_path, {**IDENTITY, "parents": {"shards": "d2"}})
    expected = r"parents\.shards: the checkpoint has .d1., this run has .d2.\n.*--start-afresh"
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
