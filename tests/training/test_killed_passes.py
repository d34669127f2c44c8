"""A pass that is killed at any moment, again and again, comes to the same models."""

import contextlib
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slow_bucket import slow_bucket
from tests.training.support import prepare_store, publish_data
from tests.training.workers import finish, pass_recipe, pass_store, start_pass, train_pass
from yt8m_assets.storage import ArtifactStore

CHANGES = {
    "mix": {"num_steps": 24, "checkpoint_every": 4, "ema_decay": 0.9},
    "bert": {"num_steps": 30, "checkpoint_every": 2},
    "more": {"num_steps": 20, "checkpoint_every": 8},
}
"""Checkpoints of three cadences, so that the models are at different steps when the next run begins."""


KEYS = [f"pretrained_model/{key}" for key in CHANGES]


@pytest.mark.parametrize(
    ("place", "kills"),
    [("folder", 3), *(pytest.param(place, 40, marks=pytest.mark.slow) for place in ("folder", "bucket"))],
)
def test_a_pass_that_is_killed_anywhere_trains_the_same_models(
    tmp_path: Path, shards: Path, place: str, kills: int
) -> None:
    recipe = pass_recipe(shards, CHANGES)
    expected = prepare_store(tmp_path / "whole", recipe)
    train_pass(tmp_path / "whole", "", recipe, {})
    with slow_bucket(latency_ms=2) if place == "bucket" else contextlib.nullcontext() as bucket:
        data = bucket.load(shards, "yt/data") if bucket else shards
        rng, left, rounds = random.Random(kills), kills, 0
        while left > 0:
            rounds += 1
            folder, root = tmp_path / f"round {rounds}", f"gs://yt/round{rounds}" if bucket else ""
            store = pass_store(folder, root)
            publish_data(pass_recipe(data, CHANGES), store)
            while True:
                process = start_pass(folder, root, data, CHANGES)
                if left > 0 and saves_something(store, process):
                    process.join(rng.uniform(0, 0.1))
                    process.kill()
                code = finish(process)
                assert code in (0, -signal.SIGKILL)
                if code == 0:
                    break
                left -= 1
            for key in KEYS:
                assert weights_of(pass_store(folder, root), key) == weights_of(expected, key)
                assert store.list_keys(f"checkpoints/{key}") == []


def weights_of(store: ArtifactStore, key: str) -> str:
    return store.require(key).digest


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
