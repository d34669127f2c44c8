"""Gated NetVLAD: NetVLAD (https://arxiv.org/abs/1511.07247) on rgb and audio, context gating of the pooled vector and
of the class probabilities (https://arxiv.org/abs/1706.06905), mixture of experts (SPEC section 5).

Shape letters: B batch, T frames (each computed once), N drawn frames, F features of a modality, K clusters, H hidden.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MODALITIES, FrameModel, ModelOutput, Options, require, require_positive
from models.heads import MixtureOfExpertsHead, ProbabilityGate
from models.layers import BatchNorm, at_least_float32, l2_normalize, normal_linear
from models.registry import register_model
from models.sampling import distinct_frames

HIDDEN2_BIAS_STD = 0.01


@dataclass(frozen=True, kw_only=True)
class GatedNetVladOptions(Options):
    """Options of Gated NetVLAD."""

    num_clusters: int = 16
    """Clusters of the rgb part; audio has half as many. The original's script ran 8, its README says 16."""
    hidden_size: int = 1024
    """Width of the first hidden layer; the gated one is twice as wide."""
    num_sampled_frames: int = 5
    """Frames drawn from a video or segment."""
    num_mixtures: int = 5
    """Experts per class."""
    l2: float = 1e-6
    """Weight of the head's L2 term."""
    bn_momentum: float = 0.001
    """Step of the running batch statistics; short trainings need a larger one than the original's."""

    def __post_init__(self) -> None:
        require_positive(self, "num_clusters", "hidden_size", "num_sampled_frames", "num_mixtures")
        require(self.num_clusters % 2 == 0, "num_clusters", self.num_clusters, "must be even: audio gets half of them")
        require(self.l2 >= 0, "l2", self.l2, "must not be negative")
        require(0 < self.bn_momentum <= 1, "bn_momentum", self.bn_momentum, "must lie in (0, 1]")


class NetVlad(nn.Module):
    """Soft-assign frames to clusters and sum, per cluster, their residuals from its centre."""

    def __init__(self, feature_size: int, num_clusters: int, bn_momentum: float) -> None:
        super().__init__()
        self.assignment = normal_linear(feature_size, num_clusters)
        self.assignment_norm = BatchNorm(num_clusters, unbiased=True, momentum=bn_momentum)
        self.centers = nn.Parameter(torch.randn(1, feature_size, num_clusters) / math.sqrt(feature_size))

    def forward(self, frames_BTF: Tensor, counts_BT: Tensor | None = None) -> Tensor:
        """Pool [B, T, F] to [B, F * K], feature-major; a frame with count c stands for c equal frames."""
        counts_R = None if counts_BT is None else counts_BT.flatten()
        assignment_RK = self.assignment_norm(self.assignment(frames_BTF).flatten(0, 1), counts_R).softmax(1)
        if counts_R is not None:
            assignment_RK = assignment_RK * counts_R[:, None].to(assignment_RK.dtype)
        assignment_BTK = assignment_RK.unflatten(0, frames_BTF.shape[:2])
        sums_BFK = at_least_float32(frames_BTF.transpose(1, 2) @ assignment_BTK)
        residuals_BFK = sums_BFK - assignment_BTK.sum(1, keepdim=True) * self.centers
        return l2_normalize(l2_normalize(residuals_BFK, dim=1).flatten(1), dim=1)


@register_model("gated_netvlad_h1024c16")
class GatedNetVlad(FrameModel):
    """NetVLAD per modality, two hidden layers, context gating, mixture of experts with probability gating."""

    Options = GatedNetVladOptions
    sampling = "frames"
    tf_rules: ClassVar = (
        (r"/vlad/(video|audio)/", r"/\1_VLAD/"),
        (r"/assignment/weights$", r"/conv2/cluster_weights"),
        (r"/assignment_norm/", r"/cluster_bn/"),
        (r"/centers$", r"/cluster_weights2/cluster_weights2"),
        (r"/(hidden1|hidden2|gating)/weights$", r"/\1_weights/\1_weights"),
        (r"/(hidden1|gating)_norm/", r"/\1_bn/"),
        (r"/hidden2/biases$", r"/hidden2_biases"),
        (r"/head/probability_gate/linear/weights$", r"/gating_prob_weights"),
        (r"/head/probability_gate/norm/", r"/gating_prob_bn/"),
        (r"/head/", r"/"),
    )

    def __init__(self, num_classes: int, feature_sizes: tuple[int, int], options: GatedNetVladOptions) -> None:
        super().__init__(num_classes, feature_sizes, options)
        num_clusters, hidden_size, momentum = options.num_clusters, options.hidden_size, options.bn_momentum
        self.num_sampled_frames = options.num_sampled_frames
        clusters = zip(MODALITIES, feature_sizes, (num_clusters, num_clusters // 2), strict=True)
        there = [(name, size, count) for name, size, count in clusters if size]
        self.vlad = nn.ModuleDict({name: NetVlad(size, count, momentum) for name, size, count in there})
        vlad_size = sum(size * count for _, size, count in there)
        self.hidden1 = normal_linear(vlad_size, hidden_size)
        self.hidden1_norm = BatchNorm(hidden_size, unbiased=True, momentum=momentum)
        self.hidden2 = nn.Linear(hidden_size, 2 * hidden_size)
        nn.init.normal_(self.hidden2.weight, std=1 / math.sqrt(hidden_size))
        nn.init.normal_(self.hidden2.bias, std=HIDDEN2_BIAS_STD)
        self.gating = normal_linear(2 * hidden_size, 2 * hidden_size)
        self.gating_norm = BatchNorm(2 * hidden_size, unbiased=True, momentum=momentum)
        gate = ProbabilityGate(num_classes, momentum)
        self.head = MixtureOfExpertsHead(2 * hidden_size, num_classes, options.num_mixtures, options.l2, gate)

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        frame_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """Score frames [B, T, F] by num_sampled_frames of them."""
        self.check_inputs(frames, num_frames, frame_index)
        if frame_index is None:
            frame_index = self.sample_frame_index(num_frames, generator)
        assert frame_index is not None
        frames, counts_BT = distinct_frames(frames, frame_index)
        pooled = [self.vlad[name](part_BTF, counts_BT) for name, part_BTF in self.split_modalities(frames).items()]
        hidden_BH = F.relu6(self.hidden1_norm(self.hidden1(torch.cat(pooled, dim=1))))
        hidden_BH = self.hidden2(hidden_BH)
        hidden_BH = hidden_BH * self.gating_norm(self.gating(hidden_BH)).sigmoid()
        probabilities_BC = self.head(hidden_BH)
        return ModelOutput(probabilities_BC, probabilities_BC.new_zeros(()))
