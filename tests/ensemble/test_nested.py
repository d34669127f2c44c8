"""Nested cross-validation: what searching is worth on unseen videos."""

import numpy as np
import pytest

from tests.ensemble.problem import problem
from yt8m_assets.ensemble.nested import cross_validate
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.proposal import candidate
from yt8m_assets.evaluation import Ratings

BOUNDS = (0.1, 1000.0)
EQUAL = candidate(6.0, [1, 1, 1], "preset")


def test_searching_pays_where_a_ranking_is_noise():
    rankings, ratings = problem({"a": 0.3, "b": 4.0, "c": 4.0}, num_videos=60, share_rated=0.3)
    found = cross_validate(FusionObjective(rankings, ratings), [EQUAL], 3, BOUNDS, 0)
    assert found.gain > 2 * found.gain_standard_error > 0
    assert found.gain == pytest.approx(found.searched_map - found.equal_map)
    assert found.gain == pytest.approx(np.mean(found.fold_gains))


def test_it_is_worth_less_on_unseen_videos_than_where_it_was_searched():
    rankings, ratings = problem({"a": 1.0, "b": 1.0, "c": 1.0}, num_videos=15, share_rated=0.2, seed=1)
    objective = FusionObjective(rankings, ratings)
    found = cross_validate(objective, [EQUAL], 5, BOUNDS, 0)
    generator = np.random.default_rng(0)
    draws = [dict(zip("abc", generator.dirichlet(np.ones(3)), strict=True)) for _ in range(200)]
    best = max(objective(6.0, weights) for weights in draws)
    assert found.gain < best - objective(6.0, dict.fromkeys("abc", 1.0))


def test_the_seed_decides_the_folds():
    rankings, ratings = problem({"a": 0.3, "b": 0.9, "c": 2.0}, share_rated=0.3)
    objective = FusionObjective(rankings, ratings)
    first, second, third = (cross_validate(objective, [EQUAL], 3, BOUNDS, seed) for seed in (0, 0, 1))
    assert first == second
    assert first != third


def test_folds_without_a_positive_are_left_out():
    rankings, _ = problem({"a": 0.3, "b": 0.9, "c": 2.0})
    ratings = Ratings.from_dict({("v000:0", 0): 1, ("v001:0", 0): 0, ("v002:0", 0): 0})
    assert cross_validate(FusionObjective(rankings, ratings), [EQUAL], 3, BOUNDS, 0) is None
