from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.optimizer import Optimizer, Schedule, clip_gradients, gradient_norms

CONFIG = TrainingConfig(num_steps=1)


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return {
        "matrix": nn.Parameter(torch.randn(4, 3, generator=generator)),
        "bias": nn.Parameter(torch.randn(3, generator=generator)),
    }


def advance(optimizer: Optimizer, learning_rate: float, blocked: torch.Tensor | None = None) -> None:
    optimizer.begin(learning_rate)
    optimizer.apply(blocked)


def test_epsilon_is_added_to_the_uncorrected_root() -> None:
    """With a gradient of 1e-9 the form of epsilon decides the step's size."""
    value = {"w": nn.Parameter(torch.zeros(1, dtype=torch.float64))}
    optimizer = Optimizer(value, CONFIG)
    expected = m = v = 0.0
    for t in range(1, 4):
        value["w"].grad = torch.full((1,), 1e-9, dtype=torch.float64)
        advance(optimizer, 0.5)
        m, v = 0.9 * m + 0.1 * 1e-9, 0.999 * v + 0.001 * 1e-18
        expected -= 0.5 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
        assert float(value["w"].detach()) == pytest.approx(expected, rel=1e-9)
    torch_form = -0.5 * 3 * 1e-9 / (1e-9 + 1e-8)
    assert abs(expected - torch_form) > 0.5 * abs(torch_form)


def test_adamw_decays_matrices_only() -> None:
    own = parameters()
    before = {name: value.detach().clone() for name, value in own.items()}
    optimizer = Optimizer(own, TrainingConfig(num_steps=1, optimizer="adamw", weight_decay=0.1))
    for value in own.values():
        value.grad = torch.zeros_like(value)
    advance(optimizer, 0.5)
    torch.testing.assert_close(own["matrix"].detach(), before["matrix"] * (1 - 0.5 * 0.1))
    torch.testing.assert_close(own["bias"].detach(), before["bias"])


def test_a_blocked_step_changes_nothing() -> None:
    own = parameters()
    before = {name: value.detach().clone() for name, value in own.items()}
    optimizer = Optimizer(own, CONFIG)
    for value in own.values():
        value.grad = torch.full_like(value, float("nan"))
    advance(optimizer, 0.5, torch.ones(()))
    for name, value in own.items():
        assert torch.equal(value, before[name])
    assert all(not value.any() for value in optimizer.state_tensors().values())


def test_a_parameter_without_gradient_is_left_alone() -> None:
    own = parameters()
    before = own["bias"].detach().clone()
    own["matrix"].grad = torch.ones_like(own["matrix"])
    advance(Optimizer(own, CONFIG), 0.5)
    assert torch.equal(own["bias"], before)


def test_clipping_per_variable_global_and_none() -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])]
    norms, _ = clip_gradients(gradients, CONFIG)
    assert norms.tolist() == pytest.approx([5.0, 0.5])
    assert gradients[0].tolist() == pytest.approx([0.6, 0.8])
    assert gradients[1].tolist() == pytest.approx([0.3, 0.4])
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])]
    clip_gradients(gradients, TrainingConfig(num_steps=1, clip="global"))
    assert torch.cat(gradients).norm() == pytest.approx(1.0)
    assert gradients[0].tolist() == pytest.approx([3 / 13, 4 / 13])
    gradients = [torch.tensor([3.0, 4.0])]
    clip_gradients(gradients, TrainingConfig(num_steps=1, clip="none"))
    assert gradients[0].tolist() == [3.0, 4.0]


def test_norms_of_large_gradients_are_accurate() -> None:
    gradient = torch.full((3000, 2000), 1e-3)
    assert float(gradient_norms([gradient])[0]) == pytest.approx(1e-3 * 6e6**0.5, rel=3e-6)


def test_state_is_restored_exactly_or_refused() -> None:
    first, second = parameters(), parameters()
    one, other = Optimizer(first, CONFIG), Optimizer(second, CONFIG)
    for step in range(4):
        if step == 2:
            other.load_state(one.state_tensors(), one.num_steps)
            for name, value in second.items():
                value.data.copy_(first[name])
        for own, optimizer in ((first, one), (second, other)):
            for value in own.values():
                value.grad = value.detach() * (step + 1)
            if optimizer is one or step >= 2:
                advance(optimizer, 0.1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(CheckpointMismatchError, match=r"m/matrix: expected \[4, 3\], found nothing"):
        other.load_state({}, 1)


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
