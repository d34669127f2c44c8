"""Radix orders against numpy's own stable sort."""

import numpy as np

from yt8m_assets.prediction.sorting import ascending_order, descending_order


def test_descending_order_equals_a_stable_sort_with_ties_and_signs():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=5000).astype(np.float32).round(2)
    scores[:6] = [0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45]
    assert np.array_equal(descending_order(scores), np.argsort(-scores, kind="stable"))


def test_ascending_order_equals_a_stable_sort():
    keys = np.random.default_rng(1).integers(0, 2**32, 5000, dtype=np.uint32)
    keys[::3] = keys[0]
    assert np.array_equal(ascending_order(keys), np.argsort(keys, kind="stable"))


def test_nothing_sorts_to_nothing():
    assert descending_order(np.empty(0, np.float32)).size == 0
