import time

import pytest
import torch

from tests.training.support import BATCHES
from yt8m_assets.training.meter import LossMeter, PendingValues, Stopwatch

CPU = torch.device("cpu")


def test_the_mean_since_the_last_point_continues_over_an_interruption() -> None:
    whole = LossMeter(CPU)
    for value in (0.1, 0.7, 0.3):
        whole.add(torch.tensor(value))
    first = LossMeter(CPU)
    first.add(torch.tensor(0.1))
    second = LossMeter(CPU, float(first.total), first.count)
    for value in (0.7, 0.3):
        second.add(torch.tensor(value))
    expected = whole.take()
    assert float(expected) == float(second.take()) == pytest.approx(1.1 / 3)
    whole.add(torch.tensor(5.0))
    assert float(whole.take()) == 5.0
    assert PendingValues(torch.stack([expected, expected])).get() == [float(expected)] * 2


def test_rates_count_waiting_for_data() -> None:
    def slow():  # type: ignore[no-untyped-def]
        for batch in BATCHES:
            time.sleep(0.05)
            yield batch

    watch, batches = Stopwatch(), slow()
    watch.restart()
    for _ in range(2):
        watch.wait_for(batches)
        watch.steps += 1
    rates = watch.rates(batch_size=8)
    assert rates["train/data_wait_share"] > 0.8
    assert rates["train/step_seconds"] >= 0.05
    assert rates["train/examples_per_second"] == pytest.approx(8 / rates["train/step_seconds"])
    watch.restart()
    time.sleep(0.01)
    assert watch.rates(batch_size=8)["train/data_wait_share"] == 0
