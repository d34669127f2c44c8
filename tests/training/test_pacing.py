import time
from dataclasses import replace

import pytest

from tests.training.support import FINETUNING
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.pacing import (
    EvaluationEnded,
    EvaluationInterrupted,
    EvaluationLimit,
    evaluation_interval,
    is_due,
)

CONFIG = replace(FINETUNING, num_steps=1000, batch_size=100, evaluate_every=10, evaluation_share=0.25)
"""Ten steps cost 3000 forward passes, of which evaluations may add a quarter: 750 segments."""


@pytest.mark.parametrize(("segments", "interval"), [(1, 10), (750, 10), (751, 20), (1500, 20), (7501, 110)])
def test_the_interval_is_stretched_in_whole_multiples_until_the_share_holds(segments: int, interval: int) -> None:
    assert evaluation_interval(CONFIG, segments) == interval
    assert segments <= 0.25 * 3 * 100 * interval


def test_without_a_share_the_interval_is_the_configured_one() -> None:
    assert evaluation_interval(replace(CONFIG, evaluation_share=None), 10**9) == 10
    assert evaluation_interval(replace(CONFIG, evaluate_every=None), 0) == 1000
    assert evaluation_interval(replace(CONFIG, evaluate_every=None, num_steps=0), 5) >= 1


def test_the_challenge_and_demo_recipes_keep_their_own_interval() -> None:
    """At 237,788 ratings over 3844 shards, of which 300 are held out; the demo holds out a third of 400 x 5."""
    from yt8m_assets.recipes import challenge, demo

    held_out = -(-237_788 * 300 // 3844)
    assert evaluation_interval(challenge.FINETUNING, held_out) == challenge.FINETUNING.evaluate_every
    assert evaluation_interval(demo.FINETUNING, -(-400 * 5 // 3)) == demo.FINETUNING.evaluate_every


def test_the_last_step_is_always_due() -> None:
    assert [step for step in range(1, 15) if is_due(step, 4, 14)] == [4, 8, 12, 14]
    assert [step for step in range(1, 15) if is_due(step, 400, 14)] == [14]


def test_a_limit_ends_for_a_stop_at_once_and_for_time_when_it_is_up() -> None:
    stop = StopRequest()
    EvaluationLimit(stop).check()
    EvaluationLimit(stop, seconds=60).check()
    late = EvaluationLimit(stop, seconds=5, started=time.monotonic() - 6)
    with pytest.raises(EvaluationEnded, match="not done within evaluation_seconds = 5") as caught:
        late.check()
    assert not isinstance(caught.value, EvaluationInterrupted)
    stop.set()
    with pytest.raises(EvaluationInterrupted, match="asked to stop"):
        late.check()
