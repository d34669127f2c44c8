"""A pass that is killed at any moment, again and again, comes to the same models."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.support import make_recipe, open_store, prepare_store
from tests.training.workers import finish, pass_models, start_pass, train_pass
from yt8m_assets.storage import ArtifactStore

CHANGES = {
    "mix": {"num_steps": 24, "checkpoint_every": 4, "ema_decay": 0.9},
    "bert": {"num_steps": 30, "checkpoint_every": 2},
    "more": {"num_steps": 20, "checkpoint_every": 8},
}
"""Checkpoints of three cadences, so that the models are at different steps when the next run begins."""


KEYS = [f"pretrained_model/{key}" for key in CHANGES]


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_pass_that_is_killed_anywhere_trains_the_same_models(tmp_path: Path, shards: Path, kills: int) -> None:
    recipe = make_recipe(shards, *pass_models(CHANGES), memory_budget=1)
    expected = prepare_store(tmp_path / "whole", recipe)
    train_pass(tmp_path / "whole", shards, pass_models(CHANGES))
    rng, left, rounds = random.Random(kills), kills, 0
    while left > 0:
        rounds += 1
        folder = tmp_path / f"round {rounds}"
        store = prepare_store(folder, recipe)
        while True:
            process = start_pass(folder, shards, CHANGES)
            if left > 0 and saves_something(store, process):
                process.join(rng.uniform(0, 0.1))
                process.kill()
            code = finish(process)
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            left -= 1
        for key in KEYS:
            assert open_store(folder).require(key).digest == expected.require(key).digest
            assert store.list_keys(f"checkpoints/{key}") == []


def saves_something(store: ArtifactStore, process: Any, seconds: float = 60) -> bool:
    """Wait until a child has written another checkpoint or published a model; False where it ended before."""
    before, until = saved(store), time.monotonic() + seconds
    while saved(store) == before:
        assert time.monotonic() < until, "nothing was saved"
        if process.exitcode is not None:
            return False
        time.sleep(0.002)
    return True


def saved(store: ArtifactStore) -> list[str]:
    return [name for key in KEYS for name in (*store.list_keys(f"checkpoints/{key}"), *store.list_keys(key))]
