"""A whole video in, a score of each of its 5-second segments out: each is judged by its own frames and by all others.

Every frame is projected, the frames of a segment become one token (a convolution of kernel and stride 5), and a small
encoder (https://arxiv.org/abs/1810.04805) lets the tokens of a video look at each other. The video's own probability
is the segments' by linear softmax, sum p^2 / sum p (https://arxiv.org/abs/1810.09050), so that labels of whole videos
train scores of segments. Shape letters: B videos, T frames, F features, N distinct frames, S segments (tokens),
H width, C classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.base import FrameModel, ModelOutput, Options, require, require_positive
from models.heads import LogisticHeads
from models.layers import he_linear
from models.registry import register_model
from models.transformer import Encoder

TOKEN_FRAMES = 5
"""Frames of a segment."""
_PRIOR_LOGIT = -4.0
"""Where the heads' biases begin: a class is rarely there, and linear softmax follows the largest probabilities."""


@dataclass(frozen=True, kw_only=True)
class FrameScorerOptions(Options):
    """Options of the frame scorer."""

    width: int = 768
    """Width of frames and tokens after their projection."""
    num_layers: int = 4
    """Encoder layers over the tokens; 0: each segment by itself."""
    num_heads: int = 12
    """Attention heads; divides the width."""
    intermediate_size: int = 3072
    """Inner width of the perceptrons."""
    dropout: float = 0.1
    """Share of attention weights and activations dropped in training."""
    l2: float = 1e-8
    """Weight of the head's L2 term."""

    def __post_init__(self) -> None:
        require_positive(self, "width", "num_heads", "intermediate_size")
        require(
            isinstance(self.num_layers, int) and self.num_layers >= 0, "num_layers", self.num_layers, "must be 0 up"
        )
        require(self.width % self.num_heads == 0, "num_heads", self.num_heads, f"must divide the width {self.width}")
        require(self.width % 2 == 0, "width", self.width, "must be even: positions are sines and cosines")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must lie in [0, 1)")
        require(self.l2 >= 0, "l2", self.l2, "must not be negative")


@register_model("frame_scorer")
class FrameScorer(FrameModel):
    """One encoder over the segments of a video, and one logistic regression for all of them."""

    Options = FrameScorerOptions
    sampling = "video"
    num_sampled_frames = 0

    def __init__(self, num_classes: int, feature_sizes: tuple[int, int], options: FrameScorerOptions) -> None:
        super().__init__(num_classes, feature_sizes, options)
        width = options.width
        self.project = nn.Sequential(he_linear(sum(feature_sizes), width), nn.LayerNorm(width), nn.GELU())
        self.join = nn.Sequential(he_linear(TOKEN_FRAMES * width, width), nn.LayerNorm(width))
        self.encoder = Encoder(options.num_layers, width, options.num_heads, options.intermediate_size, options.dropout)
        self.head = LogisticHeads(1, width, num_classes, options.l2)
        nn.init.constant_(self.head.branches[0].bias, _PRIOR_LOGIT)

    def embed_frames(self, frames_NF: Tensor) -> tuple[Tensor, ...]:
        """Project frames [N, F] to [N, H]."""
        return (self.project(frames_NF),)

    def score_videos(self, embedded: tuple[Tensor, ...], index_BST: Tensor, num_frames_BS: Tensor) -> Tensor:
        """Score every segment of some videos among the others of its own: see `FrameModel.score_videos`."""
        encoded_BSH = self._encode(embedded[0][index_BST], num_frames_BS > 0)
        return self._classify(encoded_BSH.flatten(0, 1)).unflatten(0, encoded_BSH.shape[:2])

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        frame_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """Score videos [B, T, F]; with frame_index [B, 1] the segment of each that holds this second, else the video.

        A second outside the video stands for the nearest segment. Nothing is drawn.
        """
        self.check_inputs(frames, num_frames, frame_index)
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % TOKEN_FRAMES))
        # At least one token of each: a softmax over none at all would be NaN.
        num_tokens_B1 = (num_frames[:, None] + TOKEN_FRAMES - 1).div(TOKEN_FRAMES, rounding_mode="floor").clamp(min=1)
        there_BS = torch.arange(frames.shape[1] // TOKEN_FRAMES, device=frames.device) < num_tokens_B1
        encoded_BSH = self._encode(self.project(frames).unflatten(1, (-1, TOKEN_FRAMES)), there_BS)
        if frame_index is not None:
            token_B1 = torch.minimum(frame_index.clamp(min=0) // TOKEN_FRAMES, num_tokens_B1 - 1)
            chosen_BH = encoded_BSH.gather(1, token_B1[:, :, None].expand(-1, -1, encoded_BSH.shape[2]))[:, 0]
            probabilities_BC = self._classify(chosen_BH)
        else:
            scores_BSC = self._classify(encoded_BSH.flatten(0, 1)).unflatten(0, encoded_BSH.shape[:2])
            scores_BSC = scores_BSC * there_BS[:, :, None]
            probabilities_BC = scores_BSC.square().sum(1) / scores_BSC.sum(1).clamp(min=1e-9)
        return ModelOutput(probabilities_BC, probabilities_BC.new_zeros(()))

    def _encode(self, projected_BSTH: Tensor, there_BS: Tensor) -> Tensor:
        tokens_BSH = self.join(projected_BSTH.flatten(2))
        if not self.options.num_layers:
            return tokens_BSH
        tokens_BSH = tokens_BSH + positions(tokens_BSH.shape[1], tokens_BSH.shape[2], tokens_BSH)
        return self.encoder(tokens_BSH, there_BS[:, None, None])

    def _classify(self, encoded_BH: Tensor) -> Tensor:
        return self.head(encoded_BH[None])[0].sigmoid()


def positions(num_tokens: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of a token's place, [S, H], as the Transformer has them (https://arxiv.org/abs/1706.03762)."""
    place_S1 = torch.arange(num_tokens, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * (-math.log(1e4) / width))
    return torch.cat([(place_S1 * rates).sin(), (place_S1 * rates).cos()], dim=1).to(like.dtype)
