from itertools import pairwise

import pytest

from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.schedule import Schedule


def test_the_original_staircase_counts_examples_over_both_stages() -> None:
    config = TrainingConfig(num_steps=200_000)
    rates = Schedule(config=config).learning_rate
    assert rates(0) == rates(31_249) == 1e-4
    assert rates(31_250) == pytest.approx(0.9e-4)
    finetuning = Schedule(config=TrainingConfig(num_steps=20_000), first_examples=200_000 * 128).learning_rate
    assert finetuning(0) == pytest.approx(5.314e-5, rel=1e-3)
    assert finetuning(18_749) == finetuning(0)
    assert finetuning(18_750) == pytest.approx(1e-4 * 0.9**7)


def test_warm_up_and_cosine() -> None:
    config = TrainingConfig(num_steps=110, learning_rate=1.0, schedule="cosine", warmup_steps=10)
    rates = [Schedule(config=config).learning_rate(step) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[109] < 0.001
    assert all(earlier >= later for earlier, later in pairwise(rates[10:]))
