"""MixNeXtVLAD: a mixture of three NeXtVLAD networks (https://arxiv.org/abs/1811.05014), squeeze-and-excitation gating,
and distillation from the mixture into its members (SPEC section 6).

Parameters are one per variable of the original; the branches are stacked where that makes one batched product of three.
Shape letters: S branches, B batch, T frames (each computed once), N drawn frames, R = B * T, F features of a modality,
X expanded features, G groups, D = X / G, K clusters, V size of the pooled vector, H hidden, C classes.
"""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import MODALITIES, FrameModel, ModelOutput, Options, require, require_positive
from models.heads import LogisticHeads
from models.layers import BatchNorm, at_least_float32, he_linear
from models.next_vlad import NextVlad
from models.registry import register_model
from models.sampling import distinct_frames

LOG_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class MixNextVladOptions(Options):
    """Options of MixNeXtVLAD."""

    num_clusters: int = 112
    """Clusters of the rgb part; audio has half as many."""
    hidden_size: int = 2048
    """Width of a branch's hidden layer."""
    num_groups: int = 8
    """Groups an expanded rgb frame is cut into; audio has half as many."""
    expansion: int = 2
    """Factor by which a frame is widened before it is cut into groups."""
    gating_reduction: int = 16
    """Factor by which the gating narrows the hidden layer; divides hidden_size."""
    num_branches: int = 3
    """Networks in the mixture."""
    temperature: float = 3.0
    """Temperature of the distillation's softmaxes."""
    distillation_weight: float = 9.0
    """Factor of the distillation loss."""
    num_sampled_frames: int = 300
    """Frames drawn from a video or segment."""
    dropout: float = 0.5
    """Share of the pooled vector dropped in training."""
    l2: float = 1e-8
    """Weight of the heads' L2 term."""
    bn_momentum: float = 0.001
    """Step of the running batch statistics; short trainings need a larger one than the original's."""
    branch_loss_weight: float = 0.0
    """Factor of a cross entropy on each branch's own probabilities; the original has none."""

    def __post_init__(self) -> None:
        require_positive(self, "num_clusters", "hidden_size", "num_groups", "expansion", "gating_reduction")
        require_positive(self, "num_branches", "num_sampled_frames")
        require(self.num_clusters % 2 == 0, "num_clusters", self.num_clusters, "must be even: audio gets half of them")
        require(self.num_groups % 2 == 0, "num_groups", self.num_groups, "must be even: audio gets half of them")
        divides = self.hidden_size % self.gating_reduction == 0
        require(divides, "gating_reduction", self.gating_reduction, f"must divide hidden_size = {self.hidden_size}")
        require(self.temperature > 0, "temperature", self.temperature, "must be above zero")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must lie in [0, 1)")
        require(0 < self.bn_momentum <= 1, "bn_momentum", self.bn_momentum, "must lie in (0, 1]")
        for name in ("distillation_weight", "l2", "branch_loss_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")


class BranchTail(nn.Module):
    """A branch after pooling: one hidden layer, gated by squeeze and excitation."""

    def __init__(self, in_features: int, hidden_size: int, reduction: int, momentum: float) -> None:
        super().__init__()
        self.hidden = he_linear(in_features, hidden_size, bias=False)
        self.hidden_norm = BatchNorm(hidden_size, unbiased=False, momentum=momentum)
        self.squeeze = he_linear(hidden_size, hidden_size // reduction, bias=False)
        self.gating_norm = BatchNorm(hidden_size // reduction, unbiased=True, momentum=momentum)
        self.excite = he_linear(hidden_size // reduction, hidden_size, bias=False)

    def forward(self, vlad_BV: Tensor) -> Tensor:
        """Map [B, V] to [B, H]."""
        hidden_BH = self.hidden_norm(self.hidden(vlad_BV))
        gate_BH = self.excite(F.relu(self.gating_norm(self.squeeze(hidden_BH))))
        return hidden_BH * at_least_float32(gate_BH).sigmoid()


class MixtureWeights(nn.Module):
    """Weigh the branches by the means of the drawn frames, in the order of drawing."""

    def __init__(self, num_sampled_frames: int, num_branches: int, momentum: float) -> None:
        super().__init__()
        self.norm = BatchNorm(num_sampled_frames, unbiased=True, momentum=momentum)
        self.linear = he_linear(num_sampled_frames, num_branches)

    def forward(self, means_BN: Tensor) -> Tensor:
        """Map [B, N] to weights [B, S] that sum to 1."""
        return at_least_float32(self.linear(self.norm(means_BN))).softmax(1)


@register_model("mix_nextvlad_iter300", num_sampled_frames=300)
@register_model("mix_nextvlad_iter60", num_sampled_frames=60)
class MixNextVlad(FrameModel):
    """A mixture of NeXtVLAD networks, whose logits are averaged by weights that depend on the input."""

    Options = MixNextVladOptions
    sampling = "frames"
    tf_rules: ClassVar = (
        (r"/vlad/(video|audio)/branches/(\d+)/", r"/branch_\2/\1_vlad/"),
        (r"/expand/", r"/fully_connected/"),
        (r"/group_attention/", r"/fully_connected_1/"),
        (r"/assignment/weights$", r"/cluster_weights"),
        (r"/assignment_norm/", r"/cluster_bn/"),
        (r"/centers$", r"/cluster_weights2"),
        (r"/vlad_norm/", r"/vlad_bn/"),
        (r"/tails/(\d+)/", r"/branch_\1/"),
        (r"/hidden/weights$", r"/hidden1_weights"),
        (r"/hidden_norm/", r"/hidden1_bn/"),
        (r"/squeeze/weights$", r"/gating_weights_1"),
        (r"/excite/weights$", r"/gating_weights_2"),
        (r"/gating_norm/", r"/gating_bn/"),
        (r"/head/branches/(\d+)/", r"/branch_\1/fully_connected/"),
        (r"/mixture_weights/norm/", r"/mix_weights_bn/"),
        (r"/mixture_weights/linear/", r"/mix_weights/"),
    )

    def __init__(self, num_classes: int, feature_sizes: tuple[int, int], options: MixNextVladOptions) -> None:
        super().__init__(num_classes, feature_sizes, options)
        num_branches, num_groups, momentum = options.num_branches, options.num_groups, options.bn_momentum
        sizes = [
            (name, size, share) for name, size, share in zip(MODALITIES, feature_sizes, (1, 2), strict=True) if size
        ]
        for name, size, share in sizes:
            groups, name = num_groups // share, {"video": "rgb"}.get(name, name)
            divides = options.expansion * size % groups == 0
            rule = f"the {groups} {name} groups must divide expansion x {name} size = {options.expansion} x {size}"
            require(divides, "num_groups", num_groups, rule)
        self.num_sampled_frames = options.num_sampled_frames
        self.branch_loss_weight = options.branch_loss_weight
        self.mixture_weights = MixtureWeights(options.num_sampled_frames, num_branches, momentum)
        pools = {
            name: NextVlad(
                num_branches, size, options.expansion, num_groups // share, options.num_clusters // share, momentum
            )
            for name, size, share in sizes
        }
        self.vlad = nn.ModuleDict(pools)
        vlad_size = sum(pool.output_size for pool in pools.values())
        self.tails = nn.ModuleList(
            BranchTail(vlad_size, options.hidden_size, options.gating_reduction, momentum) for _ in range(num_branches)
        )
        self.head = LogisticHeads(num_branches, options.hidden_size, num_classes, options.l2)

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        frame_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """Score frames [B, T, F] by num_sampled_frames of them; distils the mixture into the branches in training."""
        self.check_inputs(frames, num_frames, frame_index)
        if frame_index is None:
            frame_index = self.sample_frame_index(num_frames, generator)
        assert frame_index is not None
        weights_BS = self.mixture_weights(frames.mean(2).gather(1, frame_index))
        frames, counts_BT = distinct_frames(frames, frame_index)
        pooled = [self.vlad[name](part_BTF, counts_BT) for name, part_BTF in self.split_modalities(frames).items()]
        mixed_BC, logits_SBC = self._classify(torch.cat(pooled, dim=2), weights_BS)
        if not self.training:
            return ModelOutput(mixed_BC.sigmoid(), mixed_BC.new_zeros(()))
        branches_BSC = logits_SBC.sigmoid().transpose(0, 1) if self.branch_loss_weight else None
        return ModelOutput(mixed_BC.sigmoid(), self.distillation_loss(mixed_BC, logits_SBC), branches_BSC)

    def _classify(self, vlad_SBV: Tensor, weights_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The mixture's logits [B, C], and the branches' [S, B, C]."""
        vlad_SBV = F.dropout(vlad_SBV, self.options.dropout, self.training)
        # A loop, since stacking the hidden layers would copy most of the model's weights at every step.
        hidden_SBH = torch.stack([tail(vlad_BV) for tail, vlad_BV in zip(self.tails, vlad_SBV, strict=True)])
        logits_SBC = self.head(hidden_SBH)
        return (weights_BS.T[:, :, None] * logits_SBC).sum(0), logits_SBC

    def embed_frames(self, frames_NF: Tensor) -> tuple[Tensor, ...]:
        """Embed frames as what each modality's NeXtVLAD makes of them before it sums, and as their means."""
        parts = self.split_modalities(frames_NF).items()
        embedded = [cast(NextVlad, self.vlad[name]).embed(part_NF) for name, part_NF in parts]
        return (frames_NF.mean(1), *chain.from_iterable(embedded))

    def score_windows(self, embedded: tuple[Tensor, ...], index_WT: Tensor, num_frames_W: Tensor) -> Tensor:
        """Score windows of embedded frames: the probabilities [W, C] that forward has for frames_NF[index_WT]."""
        means_N, *embedded_by_modality = embedded
        frame_index = self.sample_frame_index(num_frames_W, None)
        assert frame_index is not None
        weights_WS = self.mixture_weights(means_N[index_WT].gather(1, frame_index))
        drawn_WT1, counts_WT = distinct_frames(index_WT[:, :, None], frame_index)
        drawn_WT, pooled = drawn_WT1[:, :, 0], []
        for place, vlad in enumerate(self.vlad.values()):
            expanded_SWTX, weights_SWTGK = (part[:, drawn_WT] for part in embedded_by_modality[2 * place :][:2])
            if counts_WT is not None:
                weights_SWTGK = weights_SWTGK * counts_WT[:, :, None, None].to(weights_SWTGK.dtype)
            pooled.append(cast(NextVlad, vlad).pool(expanded_SWTX, weights_SWTGK))
        return self._classify(torch.cat(pooled, dim=2), weights_WS)[0].sigmoid()

    def distillation_loss(self, mixed_BC: Tensor, logits_SBC: Tensor) -> Tensor:
        """Divergence of the branches' softened predictions from the mixture's; gradients flow through both."""
        teacher_BC = (mixed_BC / self.options.temperature).softmax(-1)
        students_SBC = (logits_SBC / self.options.temperature).softmax(-1)
        divergence_SBC = teacher_BC * ((teacher_BC + LOG_EPS).log() - (students_SBC + LOG_EPS).log())
        return self.options.distillation_weight * divergence_SBC.sum((0, 2)).mean()
