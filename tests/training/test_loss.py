import numpy as np
import pytest
import torch

from tests.models.small import NUM_FEATURES, small_model
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective, cross_entropy

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


@pytest.mark.parametrize("key", ["gated_netvlad_h1024c16", "mix_nextvlad_iter60", "bert_mean_l2h12"])
def test_drawn_frames_alone_give_the_loss_and_gradients_of_whole_videos(key: str) -> None:
    """More frames than draws, videos that end early among them: what is not drawn changes nothing."""
    model = small_model(key, **({"dropout": 0.0} if key != "gated_netvlad_h1024c16" else {})).train()
    num_frames = torch.tensor([90, 70, 3, 1])
    frames = torch.randint(0, 256, (4, 90, NUM_FEATURES), dtype=torch.uint8)
    valid = torch.arange(90) < num_frames[:, None]
    labels = (torch.rand(4, 20) < 0.2).float()
    index = model.sample_frame_index(num_frames, torch.Generator().manual_seed(1))
    whole = model(model_inputs(frames, valid), num_frames, frame_index=index)
    expected = cross_entropy(whole.probabilities, labels) + whole.regularization_loss
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total, _ = Objective(model, TrainingConfig(num_steps=1))(frames, valid, num_frames, labels, None, index)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        slack = 1e-6 + 1e-5 * float(gradients[name].norm())  # a bias in front of a batch norm has rounding alone
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=max(slack, 2e-5), msg=name)


def test_mined_negatives_by_hand() -> None:
    """Rated pairs, a positive half as much again; beside them half of the mean over two unnamed classes."""
    p = torch.tensor([[0.8, 0.4, 0.3, 0.1, 0.6]])
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    weights = torch.tensor([[1.5, 1.0, 0.25, 0.25, 0.0]])
    expected = -(1.5 * np.log(0.8) + np.log(0.6) + 0.5 * (np.log(0.7) + np.log(0.9)) / 2)
    assert float(cross_entropy(p, labels, weights)) == pytest.approx(expected, rel=1e-4)
