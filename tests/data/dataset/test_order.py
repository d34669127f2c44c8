"""An epoch's order that is made where it is looked at is the one that would be drawn at once."""

import pickle
import time
import tracemalloc

import numpy as np
import pytest

from yt8m_assets.data.dataset import order as order_module
from yt8m_assets.data.dataset.order import ShuffledOrder, SpreadOrder, Uniforms


def drawn_at_once(sizes: np.ndarray, window: int, generator: np.random.Generator) -> np.ndarray:
    """The order as it was always drawn."""
    num_records = int(sizes.sum())
    if window >= num_records:
        return generator.permutation(num_records)
    first = np.concatenate([[0], np.cumsum(sizes)])
    shards = generator.permutation(len(sizes))
    order = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
    keys = np.arange(num_records) + generator.random(num_records) * window
    return order[np.argsort(keys, kind="stable")]


def spread_at_once(num_videos: int, windows: int, buffer: int) -> np.ndarray:
    num_blocks = max(num_videos // max(buffer, 1), 1)
    blocks = np.array_split(np.arange(num_videos), num_blocks)
    return np.concatenate([np.tile(block, windows) for block in blocks])


@pytest.mark.parametrize("block", [1, 7, 2**16])
@pytest.mark.parametrize("window", [0, 1, 5, 16, 99, 400, 499, 500])
def test_order_and_draws_are_those_of_one_generator(window: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "_BLOCK", block)
    for seed in range(4):
        generator = np.random.default_rng(seed)
        sizes = np.random.default_rng(100 + seed).multinomial(500, np.ones(17) / 17)
        sizes[seed % 17] = 0
        expected = drawn_at_once(sizes, window, generator)
        uniforms = generator.random(3 * len(expected), dtype=np.float32)
        lazy = np.random.default_rng(seed)
        order = ShuffledOrder(sizes, window, lazy)
        draws = Uniforms(3 * len(expected), lazy)
        assert np.array_equal(order[:], expected)
        assert np.array_equal(draws[:], uniforms)
        for place in (0, 250, len(expected) - 1, 3, 251):
            assert order[place] == expected[place]
            assert draws[3 * place] == uniforms[3 * place]
        assert np.array_equal(order[100:310], expected[100:310])
        spread = SpreadOrder(order, 3, window)
        assert np.array_equal(spread[:], expected[spread_at_once(len(expected), 3, window)])
        assert spread[777] == spread[:][777]
        assert np.array_equal(pickle.loads(pickle.dumps(spread))[5:90], spread[5:90])


def test_a_place_that_is_not_there_is_an_error() -> None:
    order = ShuffledOrder(np.array([3, 4]), 2, np.random.default_rng(0))
    for place in (-1, 7):
        with pytest.raises(IndexError):
            order[place]
    assert len(order[7:]) == 0


def test_an_epoch_of_millions_is_there_at_once_and_takes_little_memory() -> None:
    sizes = np.full(3844, 1457)
    tracemalloc.start()
    try:
        began = time.process_time()
        generator = np.random.default_rng(1)
        order = ShuffledOrder(sizes, 16384, generator)
        uniforms = Uniforms(len(order), generator)
        middle = [(order[place], uniforms[place]) for place in range(2_800_000, 2_800_512)]
        seconds = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len({record for record, _ in middle}) == 512
    assert peak < 20e6, "drawn at once it takes 180 MB"
    assert seconds < 2
    assert len(pickle.dumps(order)) < 100_000
