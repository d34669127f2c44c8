import pytest
import torch
from torch import nn

from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.training.averaging import WeightAverage


def set_weight(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)  # type: ignore[union-attr, operator]


def test_swa_is_the_mean_of_the_points() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, None)
    for value in (1.0, 2.0, 6.0):
        set_weight(model, value)
        average.update()
    assert average.average["weight"].tolist() == pytest.approx([3.0, 3.0])
    assert set(average.average) == {"weight", "bias"}


def test_ema_ramps_up_and_then_decays() -> None:
    model = nn.Linear(1, 1, bias=False)
    set_weight(model, 0.0)
    average = WeightAverage(model, 0.5)
    expected = 0.0
    for count, value in enumerate((1.0, 3.0, 5.0, 7.0, 9.0, 2.0, 4.0, 8.0, 1.0, 6.0)):
        set_weight(model, value)
        average.update()
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert float(average.average["weight"]) == pytest.approx(expected)


def test_an_average_is_restored_exactly_or_refused() -> None:
    model = nn.Linear(2, 2)
    first, second = WeightAverage(model, 0.9), WeightAverage(nn.Linear(2, 2), 0.9)
    first.update()
    second.load(first.average, first.count)
    assert second.count == 1
    assert all(torch.equal(value, second.average[name]) for name, value in first.average.items())
    with pytest.raises(CheckpointMismatchError, match="bias is missing"):
        second.load({"weight": first.average["weight"]}, 1)
