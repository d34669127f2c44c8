"""MixNeXtVLAD against its formulas (SPEC section 6), written plainly, one branch at a time."""

from dataclasses import asdict

import torch

from models import create_model
from models.mix_nextvlad import MixNextVladOptions
from tests.models.small import small_batch, small_model


def plain_nextvlad(branch, x, num_groups, num_clusters):
    z = branch.expand(x)
    attention = branch.group_attention(z).sigmoid().flatten(1)
    assignment = branch.assignment_norm(branch.assignment(z).flatten(0, 1))
    assignment = assignment.view(len(x), -1, num_clusters).softmax(2) * attention[:, :, None]
    groups = z.view(len(x), -1, z.shape[2] // num_groups)
    residuals = torch.einsum("bnk,bnfk->bfk", assignment, groups[..., None] - branch.centers)
    return branch.vlad_norm(torch.nn.functional.normalize(residuals, dim=1).flatten(1))


def test_the_defaults_are_the_published_model():
    published = {
        "num_clusters": 112, "hidden_size": 2048, "num_groups": 8, "expansion": 2, "gating_reduction": 16,
        "num_branches": 3, "temperature": 3.0, "distillation_weight": 9.0, "num_sampled_frames": 300, "dropout": 0.5,
        "l2": 1e-8, "bn_momentum": 0.001, "branch_loss_weight": 0.0,
    }  # fmt: skip
    assert asdict(MixNextVladOptions()) == published
    with torch.device("meta"):
        models = [create_model(f"mix_nextvlad_iter{frames}") for frames in (300, 60)]
    assert [asdict(model.options) for model in models] == [published, published | {"num_sampled_frames": 60}]


def test_stacked_branches_equal_single_ones():
    model = small_model("mix_nextvlad_iter60").double().eval()
    x = torch.randn(2, 3, 64, dtype=torch.float64)
    vlad = model.vlad["video"]
    stacked = vlad(x)
    for branch, result in zip(vlad.branches, stacked, strict=True):
        torch.testing.assert_close(result, plain_nextvlad(branch, x, vlad.num_groups, vlad.num_clusters))


def test_the_mixture_weighs_logits_in_the_order_of_the_draws():
    model, (frames, num_frames) = small_model("mix_nextvlad_iter60").eval(), small_batch()
    seen = []
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.mixture_weights.register_forward_hook(lambda module, inputs, output: seen.append(output))
    index = model.sample_frame_index(num_frames)
    output = model(frames, num_frames)
    weights, logits = seen
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    torch.testing.assert_close(output.probabilities, torch.einsum("bs,sbc->bc", weights, logits).sigmoid())
    model(frames, num_frames, index.flip(1))
    assert (seen[2] - weights).abs().max() > 1e-5
    torch.testing.assert_close(seen[3], logits)


def test_distillation_acts_in_training_alone_and_vanishes_for_equal_branches():
    model, (frames, num_frames) = small_model("mix_nextvlad_iter60", dropout=0.0), small_batch()
    assert model.train()(frames, num_frames).regularization_loss > 0
    assert model.eval()(frames, num_frames).regularization_loss == 0
    logits = torch.randn(4, 20)
    equal = model.distillation_loss(logits, logits.expand(3, -1, -1))
    torch.testing.assert_close(equal, torch.zeros(()), rtol=0, atol=1e-6)
    other = small_model("mix_nextvlad_iter60", distillation_weight=18.0)
    branches = torch.randn(3, 4, 20)
    torch.testing.assert_close(other.distillation_loss(logits, branches), 2 * model.distillation_loss(logits, branches))


def test_branches_show_their_own_probabilities_on_request_alone():
    frames, num_frames = small_batch()
    assert small_model("mix_nextvlad_iter60").train()(frames, num_frames).branch_probabilities is None
    model = small_model("mix_nextvlad_iter60", branch_loss_weight=0.5)
    assert model.branch_loss_weight == 0.5
    branches = model.train()(frames, num_frames).branch_probabilities
    assert branches.shape == (4, 3, 20)
    branches.sum().backward()
    assert all(branch.weight.grad is not None for branch in model.head.branches)
    assert model.eval()(frames, num_frames).branch_probabilities is None


def test_dropout_acts_in_training_alone():
    model, (frames, num_frames) = small_model("mix_nextvlad_iter60"), small_batch()
    index = model.eval().sample_frame_index(num_frames)
    assert torch.equal(model(frames, num_frames).probabilities, model(frames, num_frames).probabilities)
    model.train()
    first, second = (model(frames, num_frames, index).probabilities for _ in range(2))
    assert not torch.equal(first, second)


def test_overrides_change_the_architecture():
    model = small_model(
        "mix_nextvlad_iter60", num_groups=4, expansion=3, gating_reduction=4, num_branches=2, num_clusters=4, l2=2.0
    )
    assert len(model.tails) == len(model.head.branches) == len(model.vlad["audio"].branches) == 2
    assert model.vlad["video"].branches[0].centers.shape == (1, 3 * 64 // 4, 4)
    assert model.vlad["audio"].branches[0].centers.shape == (1, 3 * 32 // 2, 2)
    assert model.tails[0].squeeze.out_features == 8
    frames, num_frames = small_batch()
    assert model(frames, num_frames).probabilities.shape == (4, 20)
    expected = sum(branch.weight.square().sum() + branch.bias.square().sum() for branch in model.head.branches)
    torch.testing.assert_close(model.l2_penalty(), expected)
