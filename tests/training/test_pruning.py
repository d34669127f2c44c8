"""The median rule: which of several learning curves ends a training."""

import pickle

import pytest

from yt8m_assets.tracking.protocol import status_of
from yt8m_assets.training.pruning import ENOUGH, MedianRule, TrialPrunedError, best_by, curve_of

GOOD = tuple(((0.5, 0.6 + 0.01 * number), (1.0, 0.8)) for number in range(ENOUGH))


def evaluations(*scores: float) -> list[dict[str, float]]:
    """Of a training of 100 steps that is scored every 25."""
    return [{"step": 25.0 * (place + 1), "map": score} for place, score in enumerate(scores)]


def test_below_the_median_ends() -> None:
    rule = MedianRule(curves=GOOD, num_steps=100)
    rule(evaluations(0.1))  # the others had not been scored by then
    with pytest.raises(TrialPrunedError, match=r"ended after step 50: best 0.6100, .* had 0.6150 by then") as raised:
        rule(evaluations(0.61, 0.2))
    assert raised.value.curve == ((0.25, 0.61), (0.5, 0.2))
    assert status_of(raised.value) == "KILLED"
    rule(evaluations(0.62, 0.2))  # its best counts, not its last
    rule(evaluations(0.1, 0.9, 0.1, 0.1))  # through: nothing is to be saved any more
    rule([])


def test_none_is_ended_in_its_warm_up() -> None:
    early = tuple(((0.25, 0.9), (1.0, 0.9)) for _ in range(ENOUGH))
    rule = MedianRule(curves=early, num_steps=100)
    rule(evaluations(0.1))
    with pytest.raises(TrialPrunedError, match="ended after step 50"):
        rule(evaluations(0.1, 0.1))


def test_few_curves_end_nothing() -> None:
    with pytest.raises(TrialPrunedError):
        MedianRule(curves=GOOD, num_steps=100)(evaluations(0.0, 0.0, 0.0))
    MedianRule(curves=GOOD[1:], num_steps=100)(evaluations(0.0, 0.0, 0.0))  # one fewer, and it goes on


def test_lengths_are_compared_by_their_share() -> None:
    rule = MedianRule(curves=GOOD, num_steps=200)
    rule(evaluations(0.1, 0.1, 0.1))  # 75 of 200: no other had been scored by then
    with pytest.raises(TrialPrunedError):
        rule(evaluations(0.1, 0.1, 0.1, 0.1))
    curve = curve_of(evaluations(0.3, 0.2), 100)
    assert [best_by(curve, share) for share in (0.2, 0.25, 0.9)] == [None, 0.3, 0.3]


def test_a_rule_crosses_to_other_processes() -> None:
    rule = MedianRule(curves=GOOD, num_steps=100)
    assert pickle.loads(pickle.dumps(rule)) == rule
