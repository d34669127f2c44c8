"""Interrupted anywhere and continued, a run gives bit-identical losses and weights."""

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.support import MIX, make_recipe, prepare_store
from tests.training.workers import FileTracking, finish, read_losses, start, train_stage
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE

LONG = replace(
    MIX,
    pretraining=replace(MIX.pretraining, num_steps=24, checkpoint_every=4, ema_decay=0.9),
    finetuning=replace(MIX.finetuning, num_steps=24, checkpoint_every=4, ema_decay=0.9, swa_last=3, accumulation=2),
)
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
        lost = step - max((int(name) for name in steps if name.isdigit()), default=0)
        assert lost <= (LONG.pretraining.checkpoint_every if number == signal.SIGKILL else 0)
        assert finish(start(tmp_path, shards, LONG, stage, FileTracking(tmp_path / stage))) == 0
    assert_same(tmp_path, store, reference)


def kill_at_random_moments(
    folder: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]], rounds: int, seed: int
) -> None:
    """Checkpoints at every step, so that most kills hit a write; then the run is finished and compared."""
    rng = random.Random(seed)
    busy = replace(
        LONG,
        pretraining=replace(LONG.pretraining, checkpoint_every=1),
        finetuning=replace(LONG.finetuning, checkpoint_every=1),
    )
    store = prepare_store(folder, make_recipe(shards, busy))
    for stage in STAGES:
        for _ in range(rounds):
            child = start(folder, shards, busy, stage, FileTracking(folder / stage))
            deadline = time.monotonic() + 60
            while not (folder / stage).exists() and child.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.4))
            child.kill()
            finish(child)
        assert finish(start(folder, shards, busy, stage, FileTracking(folder / stage))) == 0
    assert_same(folder, store, reference)


def test_f01_killed_while_writing_checkpoints_nothing_is_lost(
    tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]]
) -> None:
    kill_at_random_moments(tmp_path, shards, reference, rounds=2, seed=0)


@pytest.mark.slow
def test_fifty_kills_in_a_row(tmp_path: Path, shards: Path, reference: tuple[Path, dict[str, Manifest]]) -> None:
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        kill_at_random_moments(tmp_path / str(seed), shards, reference, rounds=5, seed=seed)
