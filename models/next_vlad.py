"""NeXtVLAD (https://arxiv.org/abs/1811.05014): expanded frames, split into groups, aggregated around clusters.

Several branches are computed side by side; their parameters are stacked where that makes one batched product of three.
Shape letters: S branches, B batch, T frames (each computed once), N drawn frames, R = B * T, F features of a modality,
X expanded features, G groups, D = X / G, K clusters, V size of the pooled vector.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.layers import BatchNorm, at_least_float32, he_, he_linear, l2_normalize, stacked_batch_norm

MANY_FRAMES = 4096
"""Frames in a training batch from which branches are computed one by one: products are large enough by themselves, and
where activations are recomputed, just one branch's are there at a time."""


class NextVladBranch(nn.Module):
    """The parameters of one branch's NeXtVLAD on one modality; `NextVlad` computes all branches together."""

    def __init__(self, feature_size: int, expansion: int, num_groups: int, num_clusters: int, momentum: float) -> None:
        super().__init__()
        expanded_size = expansion * feature_size
        group_size = expanded_size // num_groups
        self.expand = he_linear(feature_size, expanded_size)
        self.group_attention = he_linear(expanded_size, num_groups)
        self.assignment = he_linear(expanded_size, num_groups * num_clusters, bias=False)
        self.assignment_norm = BatchNorm(num_groups * num_clusters, unbiased=False, momentum=momentum)
        self.centers = nn.Parameter(he_(torch.empty(1, group_size, num_clusters), fan_in=group_size))
        self.vlad_norm = BatchNorm(group_size * num_clusters, unbiased=False, momentum=momentum)


class NextVlad(nn.Module):
    """NeXtVLAD of one modality, for all branches: VLAD over the attended low-dimensional groups of every frame."""

    recompute: Callable[..., Tensor] | None = None
    """Calls a function such that its activations are not kept; None: they are."""

    def __init__(
        self, num_branches: int, feature_size: int, expansion: int, num_groups: int, num_clusters: int, momentum: float
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.num_clusters = num_clusters
        self.output_size = expansion * feature_size // num_groups * num_clusters
        self.branches = nn.ModuleList(
            NextVladBranch(feature_size, expansion, num_groups, num_clusters, momentum) for _ in range(num_branches)
        )

    def forward(self, frames_BTF: Tensor, counts_BT: Tensor | None = None) -> Tensor:
        """Pool [B, T, F] to [S, B, D * K], feature-major; a frame with count c stands for c equal frames."""
        call = self.recompute or apply
        if not self.training or frames_BTF.shape[0] * frames_BTF.shape[1] < MANY_FRAMES:
            return call(self._forward, self._branches(), frames_BTF, counts_BT)
        return torch.cat([call(self._forward, [branch], frames_BTF, counts_BT) for branch in self._branches()])

    def _forward(self, branches: list[NextVladBranch], frames_BTF: Tensor, counts_BT: Tensor | None) -> Tensor:
        counts_R = None if counts_BT is None else counts_BT.flatten()
        expanded_SRX, weights_SRGK = self.embed(frames_BTF.flatten(0, 1), counts_R, branches)
        sizes = frames_BTF.shape[:2]
        return self.pool(expanded_SRX.unflatten(1, sizes), weights_SRGK.unflatten(1, sizes), branches)

    def embed(
        self, frames_RF: Tensor, counts_R: Tensor | None = None, branches: list[NextVladBranch] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Expand frames [R, F] to [S, R, X], and say how much each group weighs in each cluster, [S, R, G, K].

        At inference each frame's depend on nothing but itself; its weights are proportional to its count. By default S
        are all branches.
        """
        branches = branches or self._branches()
        frames_SRF = frames_RF.expand(len(branches), -1, -1)
        expanded_SRX = stacked_linear([branch.expand for branch in branches], frames_SRF)
        attention = stacked_linear([branch.group_attention for branch in branches], expanded_SRX)
        attention_SRG = at_least_float32(attention).sigmoid()
        if counts_R is not None:
            attention_SRG = attention_SRG * counts_R[:, None].to(attention_SRG.dtype)
        assignment = stacked_linear([branch.assignment for branch in branches], expanded_SRX)
        assignment = stacked_batch_norm([branch.assignment_norm for branch in branches], assignment, counts_R)
        assignment_SRGK = assignment.unflatten(2, (self.num_groups, self.num_clusters)).softmax(3)
        return expanded_SRX, assignment_SRGK * attention_SRG[..., None]

    def pool(
        self, expanded_SBTX: Tensor, weights_SBTGK: Tensor, branches: list[NextVladBranch] | None = None
    ) -> Tensor:
        """Pool embedded frames to [S, B, D * K]; by default S are all branches."""
        branches = branches or self._branches()
        # Frames and their groups alike are what VLAD sums over: one product per branch and video.
        groups = expanded_SBTX.unflatten(3, (self.num_groups, -1)).flatten(2, 3)
        weights = weights_SBTGK.flatten(2, 3)
        sums_SBDK = at_least_float32(groups.transpose(2, 3) @ weights)
        centers_S1DK = torch.stack([branch.centers for branch in branches])
        residuals_SBDK = sums_SBDK - weights.sum(2, keepdim=True) * centers_S1DK
        vlad_SBV = l2_normalize(residuals_SBDK, dim=2).flatten(2)
        return stacked_batch_norm([branch.vlad_norm for branch in branches], vlad_SBV)

    def _branches(self) -> list[NextVladBranch]:
        return cast(list[NextVladBranch], list(self.branches))


def apply(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function."""
    return function(*arguments)


def stacked_linear(layers: Sequence[nn.Linear], x_SRF: Tensor) -> Tensor:
    """Apply S layers of equal sizes, each to its slice, as one batched product."""
    weight_SFX = torch.stack([linear.weight for linear in layers]).transpose(1, 2)
    if layers[0].bias is None:
        return torch.bmm(x_SRF, weight_SFX)
    return torch.baddbmm(torch.stack([linear.bias for linear in layers])[:, None], x_SRF, weight_SFX)
