"""Nested cross-validation: what searching is worth on unseen videos, and how far it is trusted for it."""

import numpy as np
import pytest

from tests.ensemble.problem import problem, world
from yt8m_assets.ensemble import ORIGINAL_W0, SearchConfig, fuse, search_weights
from yt8m_assets.ensemble.nested import AMOUNTS, _choose, cross_validate, shrink
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.proposal import candidate
from yt8m_assets.evaluation import Ratings, paired_test

BOUNDS = (0.1, 1000.0)
EQUAL = candidate(6.0, [1, 1, 1], "preset")
ALIKE, NEAR = [0.8] * 9, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1]
STRONG, MIXED = [0.5, *[2.5] * 8], [0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.2, 2.6, 3.0]


def test_searching_pays_where_a_ranking_is_noise():
    rankings, ratings = problem({"a": 0.3, "b": 4.0, "c": 4.0}, num_videos=60, share_rated=0.3)
    found = cross_validate(FusionObjective(rankings, ratings), [EQUAL], 3, BOUNDS, 0)
    assert found.gain > 2 * found.gain_standard_error > 0
    assert found.gain == pytest.approx(found.searched_map - found.equal_map)
    assert found.gain == pytest.approx(np.mean(found.fold_gains)) == pytest.approx(found.gains[0])
    assert found.gains[-1] == found.standard_errors[-1] == 0
    assert found.amount < 0.5
    assert found.reason.startswith(f"on unseen videos {found.amount:g} gains most, +")


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


def test_shrinking_goes_from_the_searched_point_to_equal_weights():
    searched = candidate(54.0, [6, 3, 0], "refinement")
    assert shrink(searched, EQUAL, 0) == searched
    assert shrink(searched, EQUAL, 1) == EQUAL
    half = shrink(searched, EQUAL, 0.5)
    assert half.w0 == pytest.approx(18.0)  # half way on a logarithmic scale
    assert half.weights == pytest.approx([1 / 2, 1 / 3, 1 / 6])


def test_an_amount_has_to_beat_equal_weights_by_more_than_noise():
    at = AMOUNTS.index(0.25)
    clear, noisy, worse = np.zeros((3, 5)), np.zeros((3, 5)), np.zeros((3, 5))
    clear[:, at] = 0.03, 0.02, 0.01
    noisy[:, at] = 0.03, -0.02, -0.004
    worse[:, :-1] = -0.01
    assert _choose(clear, 3).amount == 0.25
    assert _choose(noisy, 3).amount == 1
    assert "0.25, gains +0.0020 +- " in _choose(noisy, 3).reason
    assert _choose(worse, 3).amount == 1
    assert _choose(worse, 3).reason == "no amount of searching beats equal weights on unseen videos"
    # Divisions repeat the same videos: the same folds once more are no more sure than before.
    assert _choose(np.tile(clear, (3, 1)), 3).standard_errors[at] > 0.8 * _choose(clear, 3).standard_errors[at]


def gains_on_unseen(seed: int, noises: list[float], num_videos: int) -> tuple[float, float, float]:
    """Gain over equal weights on 300 unseen videos: the chosen weights', the search's, error of the first."""
    rankings, ratings = world(seed, 0, num_videos, noises)
    found = search_weights(rankings, ratings, config=SearchConfig(num_trials=600), presets={})
    unseen = world(seed, 1, 300, noises, share_rated=0.06)
    objective, sources = FusionObjective(*unseen), list(unseen[0].values())
    equal = objective(ORIGINAL_W0, dict.fromkeys(rankings, 1.0))
    fused = fuse(sources, list(found.weights.values()), found.w0)
    gain = paired_test(fused, fuse(sources, [1.0] * 9, ORIGINAL_W0), unseen[1], 100).difference
    return gain.value, objective(found.best.w0, found.best.weights) - equal, gain.standard_error


@pytest.mark.slow
def test_with_few_videos_alike_models_stay_nearer_to_equal_weights():
    chosen, searched, _ = gains_on_unseen(0, NEAR, 20)
    assert searched < -0.005  # a fit to the noise of 20 videos
    assert chosen > searched + 0.005
    assert chosen > -0.002


def test_with_clear_differences_the_search_is_kept():
    chosen, searched, _ = gains_on_unseen(1, STRONG, 40)
    assert chosen > 0.05
    assert chosen > 0.8 * searched


@pytest.mark.slow
@pytest.mark.parametrize("noises", [ALIKE, NEAR, STRONG, MIXED], ids=["alike", "near", "strong", "mixed"])
@pytest.mark.parametrize("num_videos", [15, 25, 40, 100])
def test_on_unseen_videos_never_below_equal_weights_by_more_than_noise(noises, num_videos):
    """16 kinds of world, five of each; the noise is the bootstrap's standard error of the gain on the unseen videos."""
    found = np.array([gains_on_unseen(seed, noises, num_videos) for seed in range(100, 105)])
    chosen, searched, error = found.T
    assert (chosen >= -2 * error).all(), found
    assert chosen.mean() >= -error.mean()
    assert chosen.mean() >= min(searched.mean() - error.mean(), 0)
