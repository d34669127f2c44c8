"""What a search tries next."""

import numpy as np
import pytest

from yt8m_assets.ensemble.proposal import (
    candidate,
    climb,
    encode,
    model_candidate,
    perturbed_candidate,
    preset_candidate,
    random_candidate,
)
from yt8m_assets.errors import ConfigError

BOUNDS = (0.1, 1000.0)
KEYS = ("a", "b", "c")


def quality(point) -> float:
    """Highest, 0, at w0 = 20 and weights 0.6, 0.3, 0.1."""
    return -((np.log(point.w0 / 20) / 5) ** 2) - sum(
        (w - t) ** 2 for w, t in zip(point.weights, (0.6, 0.3, 0.1), strict=True)
    )


def test_weights_are_brought_to_sum_1():
    assert candidate(5, [1, 3], "preset").weights == (0.25, 0.75)
    for bad in ([0, 0], [1, -1]):
        with pytest.raises(ConfigError, match="not all zero"):
            candidate(5, bad, "preset")


def test_a_preset_must_name_every_ranking():
    assert preset_candidate("p", KEYS, 5, {"a": 1, "b": 1, "c": 2, "d": 9}).weights == (0.25, 0.25, 0.5)
    with pytest.raises(ConfigError, match="'p' has no weight for c"):
        preset_candidate("p", KEYS, 5, {"a": 1, "b": 1})


def test_random_points_lie_within_the_bounds_and_on_the_simplex():
    generator = np.random.default_rng(0)
    points = [random_candidate(generator, 3, (0.5, 8.0)) for _ in range(200)]
    assert all(0.5 <= point.w0 <= 8.0 and sum(point.weights) == pytest.approx(1) for point in points)
    assert 1.5 < np.median([point.w0 for point in points]) < 2.7


def test_a_trial_is_a_point_of_the_unit_cube():
    assert encode({"w0": 10.0, "a": 0.2, "b": 0.4, "c": 0.4}, KEYS, BOUNDS) == pytest.approx([0.5, 0.5, 1, 1])
    assert encode({"w0": 1e9, "a": 1.0, "b": 0.0, "c": 0.0}, KEYS, BOUNDS) == [1, 1, 0, 0]


def test_the_model_is_a_function_of_the_trials_and_the_seed():
    generator = np.random.default_rng(1)
    points = [random_candidate(generator, 3, BOUNDS) for _ in range(8)]
    params, targets = [point.params(KEYS) for point in points], [quality(point) for point in points]
    first, second = (model_candidate(params, targets, KEYS, BOUNDS, 3) for _ in range(2))
    assert first == second
    assert first != model_candidate(params, targets, KEYS, BOUNDS, 4)
    assert first.phase == "model"
    assert all(type(value) is float for value in first.params(KEYS).values())


def test_the_model_finds_better_points_than_chance():
    generator = np.random.default_rng(2)
    points = [random_candidate(generator, 3, BOUNDS) for _ in range(8)]
    for _ in range(14):
        targets = [quality(point) for point in points]
        points.append(model_candidate([p.params(KEYS) for p in points], targets, KEYS, BOUNDS, len(points)))
    chance = sorted(quality(random_candidate(generator, 3, BOUNDS)) for _ in range(400))
    assert max(quality(point) for point in points[8:]) > chance[-8]


def test_a_climb_climbs_and_keeps_to_its_budget():
    calls = []

    def evaluate(point):
        calls.append(point)
        return quality(point)

    start = candidate(0.2, [1, 1, 1], "preset")
    best, value = climb(evaluate, start, quality(start), BOUNDS, 300)
    assert value == quality(best) == max(quality(point) for point in calls)
    assert value > -0.01
    assert len(calls) <= 300
    assert all(BOUNDS[0] <= point.w0 <= BOUNDS[1] for point in calls)
    calls.clear()
    climb(evaluate, start, quality(start), BOUNDS, 7)
    assert len(calls) == 7
    calls.clear()
    assert climb(evaluate, start, 0.5, BOUNDS, 0) == (start, 0.5)
    assert calls == []


def test_a_climb_revives_a_weight_that_is_0():
    start = candidate(20, [1, 0, 0], "preset")
    tried = []
    climb(lambda point: (tried.append(point.weights), -1.0)[1], start, 0.0, BOUNDS, 100, steps=[2.0])
    parts = [weights[1] / weights[0] for weights in tried if weights[1]]
    assert parts == pytest.approx([0.5, 0.1, 0.02])  # of the largest weight
    best, value = climb(quality, start, quality(start), BOUNDS, 300)
    assert min(best.weights) > 0
    assert value > -0.01


def test_a_perturbed_point_is_near_and_may_revive_a_weight():
    generator = np.random.default_rng(0)
    points = [perturbed_candidate(generator, candidate(20, [0.7, 0.3, 0], "preset"), BOUNDS) for _ in range(100)]
    assert 0.2 < np.mean([point.weights[2] == 0 for point in points]) < 0.4  # back at one of three sizes, or not
    ratios = [point.weights[1] / point.weights[0] for point in points]
    assert 0.1 < np.std(np.log(ratios)) < 0.2
    assert all(point.phase == "refinement" and BOUNDS[0] <= point.w0 <= BOUNDS[1] for point in points)
    assert perturbed_candidate(generator, candidate(1000, [1, 1], "preset"), (0.1, 1000)).w0 <= 1000
