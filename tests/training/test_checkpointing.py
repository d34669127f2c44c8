"""When checkpoints of a training are written, and that what fails in the background is not lost."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import MIX, PRETRAINING, make_recipe, prepare_store
from yt8m_assets.errors import StorageError
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.training import pretrain
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.step import Stepper


class Runs:
    """Pre-trains the tiny model."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.shards, self.tracking = shards, MemoryTracking()
        self.store: ArtifactStore = prepare_store(folder, make_recipe(shards, MIX))

    def pretrain(self, **changes: Any) -> Manifest:
        self.store.delete("pretrained_model/mix")
        recipe = make_recipe(self.shards, replace(MIX, pretraining=replace(PRETRAINING, **changes)))
        options = {"tracking": self.tracking, "progress": NullProgress(), "run_tags": {}}
        return pretrain(recipe, self.store, "mix", **options).manifest


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("behind"), shards)


def watched_saves(monkeypatch: pytest.MonkeyPatch, before: Any = lambda step: None) -> list[int]:
    """Steps whose checkpoints are written; `before(step)` is called ahead of each write."""
    steps: list[int] = []
    save = CheckpointStore.save

    def watching(store: CheckpointStore, step: int, checkpoint: Checkpoint) -> None:
        steps.append(step)
        before(step)
        save(store, step, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", watching)
    return steps


@pytest.mark.parametrize(
    ("every", "steps"), [(1, list(range(1, 13))), (2, list(range(1, 13))), (5, [2, 4, 6, 8, 10, 12]), (12, [6, 12])]
)
def test_a_kill_costs_no_more_steps_than_said(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, every: int, steps: list[int]
) -> None:
    """The write before is whole when the next begins: the two intervals that may be lost are within the limit."""
    saved = watched_saves(monkeypatch)
    runs.pretrain(checkpoint_every=every)
    assert saved == steps
    kept = [0, 0, *saved] if every > 1 else [0, *saved]
    distance = 2 if every > 1 else 1  # every step: written before the next, not behind it
    assert max(later - earlier for earlier, later in zip(kept, kept[distance:], strict=False)) <= every


def test_checkpoints_are_due_by_time_as_well(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = watched_saves(monkeypatch)
    runs.pretrain(checkpoint_every=10**6)
    assert saved == []
    step = Stepper.run

    def slow(self: Stepper, *arguments: Any) -> torch.Tensor:
        time.sleep(0.03)
        return step(self, *arguments)

    monkeypatch.setattr(Stepper, "run", slow)
    runs.pretrain(checkpoint_every=10**6, checkpoint_seconds=0.12)
    assert len(saved) >= 6  # after two steps at the latest: half of the limit
    saved.clear()
    runs.pretrain(checkpoint_every=10**6, checkpoint_seconds=None)
    assert saved == []


def test_training_goes_on_while_a_checkpoint_is_written_and_changes_no_bit(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = runs.pretrain(checkpoint_every=10**6).digest
    steps, reached = [], threading.Event()
    run = Stepper.run

    def counted(self: Stepper, batch: Any, step: int, rate: float) -> torch.Tensor:
        steps.append(step)
        if step == 9:
            reached.set()
        return run(self, batch, step, rate)

    monkeypatch.setattr(Stepper, "run", counted)
    saved = watched_saves(monkeypatch, lambda step: reached.wait(30) if step == 5 else None)
    manifest = runs.pretrain(checkpoint_every=10)  # were it written between steps, step 9 would never come
    assert reached.is_set()
    assert (saved, steps, manifest.digest) == ([5, 10], list(range(12)), digest)


def test_a_checkpoint_of_every_step_is_written_before_the_next(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    save, run = CheckpointStore.save, Stepper.run

    def slow(store: CheckpointStore, step: int, checkpoint: Checkpoint) -> None:
        time.sleep(0.02)
        save(store, step, checkpoint)
        written.append(step)

    def checked(self: Stepper, batch: Any, step: int, rate: float) -> torch.Tensor:
        assert written == list(range(1, step + 1))
        return run(self, batch, step, rate)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    monkeypatch.setattr(Stepper, "run", checked)
    runs.pretrain(checkpoint_every=1)
    assert len(written) == 12


def test_a_stopped_run_whose_checkpoint_fails_does_not_say_that_it_is_saved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(step: int) -> None:
        raise StorageError("no space left")

    def stopped(self: StopRequest) -> None:
        self.requested = True

    monkeypatch.setattr(StopRequest, "__init__", stopped)
    watched_saves(monkeypatch, full)
    with pytest.raises(StorageError, match="no space left"):
        runs.pretrain()


@pytest.mark.parametrize("failing", [6, 12])
def test_a_write_that_fails_ends_the_training_by_its_own_error(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """At the next step, or at the end; the checkpoint before stays, and the rerun continues from it."""
    digest = runs.pretrain().digest
    step = Stepper.run

    def full(number: int) -> None:
        if number == failing:
            raise StorageError(f"step {number}: no space left")

    def slow(self: Stepper, *arguments: Any) -> torch.Tensor:
        time.sleep(0.05)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "run", slow)
        saved = watched_saves(patch, full)
        with pytest.raises(StorageError, match=f"step {failing}: no space left"):
            runs.pretrain(checkpoint_every=12)
    assert saved == [6, 12][: failing // 6]
    assert runs.tracking.runs[-1].status == "FAILED"
    assert runs.tracking.runs[-1].series("train/loss")[-1][0] <= failing + 3
    manifest = runs.pretrain(checkpoint_every=12)
    assert (manifest.metadata["resumed_from_step"], manifest.digest) == (failing - 6, digest)
