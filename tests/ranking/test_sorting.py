"""Radix orders against numpy's own stable sort."""

import numpy as np
import pytest

from yt8m_assets.ranking.sorting import ascending_order, descending_order


def test_descending_order_equals_a_stable_sort_with_ties_and_signs():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=5000).astype(np.float32).round(2)
    scores[:6] = [0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45]
    assert np.array_equal(descending_order(scores), np.argsort(-scores, kind="stable"))


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("share_tied", [0, 0.1, 0.6])
def test_doubles_too_also_those_that_32_bits_cannot_tell_apart(size, share_tied):
    generator = np.random.default_rng(2)
    scores = generator.normal(size=size)
    near = generator.random(size) < share_tied
    scores[near] = 0.5 + generator.integers(-3, 4, near.sum()) * 1e-12
    scores[:6] = [0.0, -0.0, 1e300, -1e-300, 2e300, -1e300]
    assert np.array_equal(descending_order(scores), np.argsort(-scores, kind="stable"))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_ascending_order_equals_a_stable_sort(dtype):
    keys = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, 5000, dtype=dtype)
    keys[::3] = keys[0]
    assert np.array_equal(ascending_order(keys), np.argsort(keys, kind="stable"))


def test_nothing_sorts_to_nothing():
    assert descending_order(np.empty(0, np.float32)).size == 0
