"""Classifier heads: mixture of experts (YouTube-8M, https://arxiv.org/abs/1609.08675) with optional probability gating
(context gating, https://arxiv.org/abs/1706.06905), and logistic regression.

Shape letters: B batch, H features, C classes, R the classes kept by a restriction, E experts, S stacked branches.
"""

from typing import Self

import torch
from torch import Tensor, nn

from models.layers import BatchNorm, at_least_float32, glorot_linear, he_linear, normal_linear

L2Terms = list[tuple[Tensor, float]]
"""Weights and their factors: half of a factor times the squared weights is part of the objective."""


class MixtureOfExpertsHead(nn.Module):
    """Per class, a softmax gate over E sigmoid experts and one dummy expert that predicts 0 (SPEC section 3.2)."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        num_mixtures: int,
        l2: float,
        probability_gate: "ProbabilityGate | None" = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_mixtures = num_mixtures
        self.l2 = l2
        self.classes_first = True
        self.gates = glorot_linear(in_features, num_classes * (num_mixtures + 1), bias=False)
        self.experts = glorot_linear(in_features, num_classes * num_mixtures)
        self.probability_gate = probability_gate

    def forward(self, features_BH: Tensor) -> Tensor:
        """Map [B, H] to probabilities [B, C]."""
        gates_BEC = self._per_class(self.gates(features_BH)).softmax(1)
        experts_BEC = self._per_class(self.experts(features_BH)).sigmoid()
        probabilities_BC = (gates_BEC[:, : self.num_mixtures] * experts_BEC).sum(1)
        if self.probability_gate is None:
            return probabilities_BC
        return self.probability_gate(probabilities_BC)

    def _per_class(self, x: Tensor) -> Tensor:
        """Unfold a layer's columns into [B, E, C], the experts of all classes side by side.

        A softmax over six adjacent values is five times slower than one across rows, the copy included.
        """
        if not self.classes_first:
            return at_least_float32(x).unflatten(1, (-1, self.num_classes))
        x_BEC = x.unflatten(1, (self.num_classes, -1)).transpose(1, 2)
        wide = torch.promote_types(x.dtype, torch.float32)
        return x_BEC.to(wide, memory_format=torch.contiguous_format).contiguous()

    def l2_terms(self) -> L2Terms:
        """The weights of gates and experts; biases are free."""
        return [(self.gates.weight, self.l2), (self.experts.weight, self.l2)]

    def restrict_classes(self, class_ids: Tensor) -> "MixtureOfExpertsHead":
        """Make a head of these classes alone; with a probability gate, every class is still scored before it."""
        restricted = MixtureOfExpertsHead.__new__(MixtureOfExpertsHead)
        nn.Module.__init__(restricted)
        restricted.num_mixtures, restricted.l2 = self.num_mixtures, self.l2
        if self.probability_gate is None:
            restricted.num_classes = class_ids.numel()
            restricted.classes_first = False
            restricted.gates = keep_classes(self.gates, class_ids, self.num_mixtures + 1)
            restricted.experts = keep_classes(self.experts, class_ids, self.num_mixtures)
            restricted.probability_gate = None
        else:
            restricted.num_classes, restricted.classes_first = self.num_classes, self.classes_first
            restricted.gates, restricted.experts = self.gates, self.experts
            restricted.probability_gate = self.probability_gate.restrict_classes(class_ids)
        return restricted


class ProbabilityGate(nn.Module):
    """Context gating of the class probabilities themselves: `p * sigmoid(BN(p W))`."""

    class_ids: Tensor | None

    def __init__(self, num_classes: int, bn_momentum: float) -> None:
        super().__init__()
        self.linear = normal_linear(num_classes, num_classes)
        self.norm = BatchNorm(num_classes, unbiased=True, momentum=bn_momentum)
        self.register_buffer("class_ids", None)

    def forward(self, probabilities_BC: Tensor) -> Tensor:
        """Gate [B, C]; a restricted gate returns the kept classes [B, R]."""
        gate = self.norm(self.linear(probabilities_BC)).sigmoid()
        kept = probabilities_BC if self.class_ids is None else probabilities_BC[:, self.class_ids]
        return kept * gate

    def restrict_classes(self, class_ids: Tensor) -> "ProbabilityGate":
        """Make a gate that still sees all probabilities and returns those of these classes."""
        restricted = ProbabilityGate.__new__(ProbabilityGate)
        nn.Module.__init__(restricted)
        restricted.linear = keep_classes(self.linear, class_ids)
        norm = BatchNorm(class_ids.numel(), unbiased=self.norm.unbiased, momentum=self.norm.momentum)
        state = self.norm.state_dict()
        restricted.norm = norm.to(self.norm.weight)
        restricted.norm.load_state_dict({name: value[class_ids.to(value.device)] for name, value in state.items()})
        restricted.register_buffer("class_ids", class_ids.to(self.norm.weight.device))
        return restricted.requires_grad_(False)


class LogisticHeads(nn.Module):
    """One logistic regression for each of S branches (SPEC section 3.3); returns logits."""

    def __init__(self, num_branches: int, in_features: int, num_classes: int, l2: float) -> None:
        super().__init__()
        self.l2 = l2
        self.branches = nn.ModuleList(he_linear(in_features, num_classes) for _ in range(num_branches))

    def forward(self, features_SBH: Tensor) -> Tensor:
        """Map [S, B, H] to logits [S, B, C]."""
        # Stacking the outputs, not the weights: these are many times larger.
        logits = [branch(features_BH) for branch, features_BH in zip(self.branches, features_SBH, strict=True)]
        return at_least_float32(torch.stack(logits))

    def l2_terms(self) -> L2Terms:
        """All weights and biases."""
        return [(value, self.l2) for value in self.parameters()]

    def restrict_classes(self, class_ids: Tensor) -> Self:
        """Make heads of these classes alone."""
        restricted = type(self)(0, 1, 1, self.l2)
        restricted.branches.extend(keep_classes(branch, class_ids) for branch in self.branches)
        return restricted


@torch.no_grad()
def keep_classes(layer: nn.Module, class_ids: Tensor, columns_per_class: int = 1) -> nn.Linear:
    """Copy the outputs of a linear layer that belong to these classes: first columns first, [columns_per_class, R]."""
    assert isinstance(layer, nn.Linear)
    offsets = torch.arange(columns_per_class, device=layer.weight.device)
    columns = (class_ids.to(layer.weight.device) * columns_per_class + offsets[:, None]).flatten()
    with torch.device("meta"):
        kept = nn.Linear(layer.in_features, columns.numel(), bias=layer.bias is not None)
    kept.weight = nn.Parameter(layer.weight[columns], requires_grad=False)
    if layer.bias is not None:
        kept.bias = nn.Parameter(layer.bias[columns], requires_grad=False)
    return kept
