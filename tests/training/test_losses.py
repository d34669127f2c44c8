import numpy as np
import pytest
import torch

from yt8m_assets.training.losses import cross_entropy

PROBABILITIES = torch.tensor([[0.9, 0.2, 0.0], [0.5, 1.0, 0.3]])
LABELS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def plain(labels: np.ndarray, weights: np.ndarray) -> float:
    p = PROBABILITIES.numpy().astype(np.float64)
    losses = -(labels * np.log(p + 1e-5) + (1 - labels) * np.log(1 - p + 1e-5))
    return float((losses * weights).sum(1).mean())


def test_sum_over_classes_and_mean_over_the_batch() -> None:
    assert float(cross_entropy(PROBABILITIES, LABELS)) == pytest.approx(
        plain(LABELS.numpy(), np.ones((2, 3))), rel=1e-5
    )


def test_rated_pairs_alone() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = float(cross_entropy(PROBABILITIES, LABELS, weights))
    assert found == pytest.approx(plain(LABELS.numpy(), weights.numpy()), rel=1e-5)
    assert found < float(cross_entropy(PROBABILITIES, LABELS))


def test_label_smoothing_moves_targets_towards_one_half() -> None:
    smoothed = LABELS.numpy() * 0.8 + 0.1
    found = float(cross_entropy(PROBABILITIES, LABELS, None, 0.2))
    assert found == pytest.approx(plain(smoothed, np.ones((2, 3))), rel=1e-5)


def test_bfloat16_probabilities_are_taken_to_float32_first() -> None:
    probabilities = torch.tensor([[0.996]], dtype=torch.bfloat16)
    exact = -np.log(1 - float(probabilities) + 1e-5)
    assert float(cross_entropy(probabilities, torch.zeros(1, 1))) == pytest.approx(exact, rel=1e-5)
