"""Interrupted anywhere and continued, a run gives bit-identical losses and weights."""

import json
import logging
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.support import MIX, make_recipe, open_store, prepare_store
from tests.training.workers import FileTracking, KilledInAWrite, finish, read_losses, start, train_stage
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE

logger = logging.getLogger(__name__)

LONG = replace(
    MIX,
    pretraining=replace(MIX.pretraining, num_steps=24, checkpoint_every=4, ema_decay=0.9),
    finetuning=replace(MIX.finetuning, num_steps=24, checkpoint_every=4, ema_decay=0.9, swa_last=3, accumulation=2),
)
BUSY = replace(
    LONG,
    pretraining=replace(LONG.pretraining, checkpoint_every=2),
    finetuning=replace(LONG.finetuning, checkpoint_every=2),
)
"""A checkpoint is begun after every step, so that many kills hit a write behind the next step."""
KEYS = {"pretrain": "pretrained_model/mix", "finetune": "finetuned_model/mix"}
STAGES = ("pretrain", "finetune")


def manifests(store: ArtifactStore) -> dict[str, Manifest]:
    return {stage: store.require(key) for stage, key in KEYS.items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[Path, dict[str, Manifest]]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    store = prepare_store(folder, make_recipe(shards, LONG))
    for stage in STAGES:
        train_stage(folder, shards, LONG, stage, FileTracking(folder / stage))
    return folder, manifests(store)


def assert_same(folder: Path, store: ArtifactStore, reference: tuple[Path, dict[str, Manifest]]) -> None:
    for stage in STAGES:
        assert read_losses(folder / stage) == read_losses(reference[0] / stage)
    assert {k: m.digest for k, m in manifests(store).items()} == {k: m.digest for k, m in reference[1].items()}
    assert (
        store.list_keys("checkpoints/pretrained_model/mix") == store.list_keys("checkpoints/finetuned_model/mix") == []
    )


def train_with_signal(
    folder: Path, shards: Path, model: ModelRecipe, stage: str, step: int, number: signal.Signals
) -> int:
    return finish(start(folder, shards, model, stage, FileTracking(folder / stage, step, number)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_f02_killed_between_steps_training_continues_bit_for_bit(
    tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]], number: signal.Signals
) -> None:
    store = prepare_store(tmp_path, make_recipe(shards, LONG))
    rng = random.Random(number)
    for stage in STAGES:
        step = rng.randrange(2, 24)
        code = train_with_signal(tmp_path, shards, LONG, stage, step, number)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else PREEMPTED_EXIT_CODE)
        assert store.manifest(KEYS[stage]) is None
        steps = [key.rsplit("-", 1)[-1] for key in store.list_keys(f"checkpoints/{KEYS[stage]}")]
        saved = max((int(name) for name in steps if name.isdigit()), default=0)
        assert step - saved <= (LONG.pretraining.checkpoint_every if number == signal.SIGKILL else 0)
        assert finish(start(tmp_path, shards, LONG, stage, FileTracking(tmp_path / stage))) == 0
        assert store.require(KEYS[stage]).metadata["resumed_from_step"] == saved
    assert_same(tmp_path, store, reference)


def last_step(path: Path) -> int:
    """The newest step whose loss is in the file; a line that is being written does not count."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((entry["step"] for entry in entries if "train/loss" in entry), default=0)


def kill_once(folder: Path, shards: Path, stage: str, step: int, wait: float) -> bool:
    """Kill a run `wait` seconds after it reached a step; whether that left a half-written artifact."""
    child = start(folder, shards, BUSY, stage, FileTracking(folder / stage))
    deadline = time.monotonic() + 60
    while last_step(folder / stage) < step and child.is_alive():
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.001)
    time.sleep(wait)
    child.kill()
    assert finish(child) == -signal.SIGKILL, "the run ended by itself: nothing was killed"
    store = open_store(folder)
    whole = {key.rsplit("/", 1)[-1] for key in store.list_keys(f"checkpoints/{KEYS[stage]}")}
    names = {name for name in store.backend.names(f"checkpoints/{KEYS[stage]}") if not name.startswith(".")}
    return bool(names - whole)


def kill_at_random_moments(
    folder: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]], rounds: int, seed: int
) -> int:
    """Kill each stage `rounds` times, later each time, finish, compare; how many kills hit a write of a checkpoint."""
    rng = random.Random(seed)
    store = prepare_store(folder, make_recipe(shards, BUSY))
    hits = 0
    for stage in STAGES:
        for step in sorted(rng.sample(range(1, 20), rounds)):
            hits += kill_once(folder, shards, stage, step, rng.uniform(0.0, 0.1))
            assert store.manifest(KEYS[stage]) is None
        killed_at = last_step(folder / stage)
        assert finish(start(folder, shards, BUSY, stage, FileTracking(folder / stage))) == 0
        resumed = store.require(KEYS[stage]).metadata["resumed_from_step"]
        assert killed_at - 2 <= resumed <= killed_at, "no more is lost than checkpoint_every says"
    assert_same(folder, store, reference)
    return hits


def test_f01_killed_while_writing_checkpoints_nothing_is_lost(
    tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]]
) -> None:
    kill_at_random_moments(tmp_path, shards, reference, rounds=2, seed=0)


def test_f01_killed_at_every_operation_of_a_write_behind_the_training(
    tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]]
) -> None:
    """Before a write has a file, half-way through one, before its files and before its manifest take their names."""
    folder, key = tmp_path, f"checkpoints/{KEYS['pretrain']}"
    store = prepare_store(folder, make_recipe(shards, BUSY))
    before = 0
    for operation in ("staging", "write_tensors", "put_folder", "create_exclusive", "delete"):
        number = 8 if operation == "write_tensors" else 3  # of three files a checkpoint
        tracking = KilledInAWrite(folder / "pretrain", operation=operation, number=number)
        assert finish(start(folder, shards, BUSY, "pretrain", tracking)) == -signal.SIGKILL
        saved = max(int(name.rsplit("-", 1)[-1]) for name in store.list_keys(key))
        assert before < saved <= last_step(folder / "pretrain") <= saved + BUSY.pretraining.checkpoint_every, operation
        before = saved
    train_stage(folder, shards, BUSY, "pretrain", FileTracking(folder / "pretrain"))
    assert read_losses(folder / "pretrain") == read_losses(reference[0] / "pretrain")
    manifest = store.require(KEYS["pretrain"])
    assert (manifest.metadata["resumed_from_step"], manifest.digest) == (before, reference[1]["pretrain"].digest)


@pytest.mark.slow
def test_fifty_kills_in_a_row(tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]]) -> None:
    hits = 0
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        hits += kill_at_random_moments(tmp_path / str(seed), shards, reference, rounds=5, seed=seed)
    logger.info("50 kills, %d of them while a checkpoint was being written", hits)
    assert hits >= 5
