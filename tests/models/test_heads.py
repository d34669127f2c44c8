"""The heads against their formulas (SPEC sections 3.2 and 3.3), written plainly."""

import pytest
import torch

from models.heads import LogisticHeads, MixtureOfExpertsHead, ProbabilityGate


def test_mixture_of_experts_is_its_formula():
    torch.manual_seed(0)
    head, features = MixtureOfExpertsHead(8, 3, 2, l2=1e-6), torch.randn(4, 8)
    gates, experts = head.gates(features), head.experts(features)
    for c in range(3):
        weights = gates[:, 3 * c : 3 * c + 3].softmax(1)
        expected = (weights[:, :2] * experts[:, 2 * c : 2 * c + 2].sigmoid()).sum(1)
        torch.testing.assert_close(head(features)[:, c], expected)


def test_a_sure_dummy_expert_predicts_nothing():
    head = MixtureOfExpertsHead(1, 1, 2, l2=0.0)
    with torch.no_grad():
        head.gates.weight.copy_(torch.tensor([[0.0], [0.0], [50.0]]))
    assert head(torch.ones(1, 1)) < 1e-20


def test_probability_gate_is_its_formula():
    torch.manual_seed(0)
    gate, probabilities = ProbabilityGate(5, bn_momentum=0.1).eval(), torch.rand(4, 5)
    expected = probabilities * (gate.linear(probabilities) / (1 + 1e-3) ** 0.5).sigmoid()
    torch.testing.assert_close(gate(probabilities), expected)


def test_logistic_heads_penalise_biases_too():
    heads = LogisticHeads(2, 3, 4, l2=2.0)
    with torch.no_grad():
        for value in heads.parameters():
            value.fill_(1.0)
    assert sum(factor / 2 * value.square().sum() for value, factor in heads.l2_terms()) == 2 * (3 * 4 + 4)
    assert heads(torch.ones(2, 1, 3)).flatten().tolist() == [4.0] * 8


def test_a_restricted_head_needs_no_gradient_and_copies_its_columns():
    head = MixtureOfExpertsHead(8, 5, 2, l2=1e-6)
    kept = head.restrict_classes(torch.tensor([3]))
    assert not any(parameter.requires_grad for parameter in kept.parameters())
    assert torch.equal(kept.gates.weight, head.gates.weight[9:12])
    assert torch.equal(kept.experts.bias, head.experts.bias[6:8])
    two = head.restrict_classes(torch.tensor([3, 0]))
    assert torch.equal(two.experts.bias, head.experts.bias[[6, 0, 7, 1]])
    with torch.no_grad():
        head.gates.weight.zero_()
    assert kept.gates.weight.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_mixture_is_its_formula_class_by_class(dtype):
    """With values that tell classes from experts; the sums in float32 at least."""
    torch.manual_seed(0)
    head, features = MixtureOfExpertsHead(8, 5, 2, l2=1e-6).to(dtype), torch.randn(4, 8, dtype=dtype)
    gates, experts = head.gates(features).double(), head.experts(features).double()
    for number in range(5):
        weights = gates[:, 3 * number : 3 * number + 3].softmax(1)[:, :2]
        expected = (weights * experts[:, 2 * number : 2 * number + 2].sigmoid()).sum(1)
        found = head(features)[:, number]
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
