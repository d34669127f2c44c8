"""Gated NetVLAD against its formulas (SPEC section 5), written plainly."""

from dataclasses import asdict

import torch

from models.gated_netvlad import GatedNetVladOptions, NetVlad
from tests.models.small import small_batch, small_model


def test_the_defaults_are_the_published_model():
    assert asdict(GatedNetVladOptions()) == {
        "num_clusters": 16, "hidden_size": 1024, "num_sampled_frames": 5, "num_mixtures": 5, "l2": 1e-6,
        "bn_momentum": 0.001,
    }  # fmt: skip


def test_netvlad_is_its_formula():
    torch.manual_seed(0)
    vlad = NetVlad(6, 4, bn_momentum=0.1).double().eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    assignment = (x @ vlad.assignment.weight.T / (1 + 1e-3) ** 0.5).softmax(2)
    residuals = torch.einsum("btk,btfk->bfk", assignment, x[..., None] - vlad.centers)
    per_cluster = residuals / residuals.norm(dim=1, keepdim=True)
    flat = per_cluster.flatten(1)
    torch.testing.assert_close(vlad(x), flat / flat.norm(dim=1, keepdim=True))


def test_zero_frames_give_finite_probabilities():
    model = small_model("gated_netvlad_h1024c16").eval()
    assert model(torch.zeros(2, 5, 96), torch.tensor([5, 0])).probabilities.isfinite().all()


def test_probability_gating_sees_every_class():
    """A change of one class's expert moves the probability of another."""
    model, (frames, num_frames) = small_model("gated_netvlad_h1024c16").eval(), small_batch()
    with torch.no_grad():
        before = model(frames, num_frames).probabilities
        model.head.experts.bias[:5] += 3
        after = model(frames, num_frames).probabilities
    assert (after - before)[:, 1:].abs().max() > 1e-4


def test_overrides_change_the_architecture():
    model = small_model("gated_netvlad_h1024c16", num_clusters=6, num_sampled_frames=3, num_mixtures=2, l2=0.5)
    assert model.vlad["video"].centers.shape == (1, 64, 6)
    assert model.vlad["audio"].centers.shape == (1, 32, 3)
    assert model.head.gates.out_features == 20 * 3
    frames, num_frames = small_batch()
    assert model(frames, num_frames).probabilities.shape == (4, 20)
    expected = 0.25 * (model.head.gates.weight.square().sum() + model.head.experts.weight.square().sum())
    torch.testing.assert_close(model.l2_penalty(), expected)
