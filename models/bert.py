"""BERT over frame features (https://arxiv.org/abs/1810.04805), one encoder over [rgb | audio], or one each first.

A frame is a token: its 1152 features enter the encoder as they are, without projection, position or token type. The
pooled output goes to a mixture of experts (SPEC section 4). Shape letters: B batch, T frames, H width, C classes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from models.base import FrameModel, ModelOutput, Options, require, require_positive
from models.heads import MixtureOfExpertsHead
from models.registry import register_model
from models.sampling import gather_frames
from models.transformer import Encoder, Pooler

Pooling = Literal["concat", "last", "mean", "attention"]


@dataclass(frozen=True, kw_only=True)
class BertOptions(Options):
    """Options of BERT and BERT cross."""

    num_layers: int = 2
    """Encoder layers; in BERT cross the last of them sees both modalities."""
    num_heads: int = 12
    """Attention heads; divides every encoder's width."""
    intermediate_size: int = 3072
    """Inner width of the perceptrons."""
    pooling: Pooling = "concat"
    """How frames become one vector; "concat" needs exactly segment_frames of them."""
    segment_frames: int = 5
    """Frames that training draws in a row, and that "concat" is built for."""
    dropout: float = 0.1
    """Share of attention weights and activations dropped in training."""
    mask_padding: bool = False
    """Keep frames from num_frames on out of attention and pooling; the original lets them take part."""
    num_mixtures: int = 5
    """Experts per class."""
    l2: float = 1e-6
    """Weight of the head's L2 term."""

    def __post_init__(self) -> None:
        require_positive(self, "num_layers", "num_heads", "intermediate_size", "segment_frames", "num_mixtures")
        require(self.pooling in get_args(Pooling), "pooling", self.pooling, f"choose one of {get_args(Pooling)}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must lie in [0, 1)")
        require(self.l2 >= 0, "l2", self.l2, "must not be negative")

    def require_heads_divide(self, *widths: int) -> None:
        """Refuse a number of heads that does not divide the encoders' widths."""
        fits = all(width % self.num_heads == 0 for width in widths)
        require(fits, "num_heads", self.num_heads, f"must divide the encoder width {' and '.join(map(str, widths))}")


@register_model("bert_l2h12")
@register_model("bert_l3h12", num_layers=3)
@register_model("bert_first_l2h12", pooling="last")
@register_model("bert_mean_l2h12", pooling="mean")
class Bert(FrameModel):
    """One encoder over whole frames."""

    Options = BertOptions
    sampling = "sequence"
    tf_rules: ClassVar = (
        (r"layers/(\d+)", r"layer_\1"),
        (r"/(query|key|value)/(weights|biases)$", r"/attention/self/\1/\2"),
        (r"/attention_output/(weights|biases)$", r"/attention/output/dense/\1"),
        (r"/attention_norm/", r"/attention/output/LayerNorm/"),
        (r"/output_norm/", r"/output/LayerNorm/"),
        (r"/(layer_\d+/intermediate|layer_\d+/output)/(weights|biases)$", r"/\1/dense/\2"),
        (r"(/layer_\d+/.*)/weights$", r"\1/kernel"),
        (r"(/layer_\d+/.*)/biases$", r"\1/bias"),
        (r"/head/", r"/"),
    )

    def __init__(self, num_classes: int, feature_sizes: tuple[int, int], options: BertOptions) -> None:
        super().__init__(num_classes, feature_sizes, options)
        width = sum(feature_sizes)
        self.num_sampled_frames = options.segment_frames
        self._add_encoders()
        self.pooler = Pooler(options.pooling, width)
        pooled_size = width * options.segment_frames if options.pooling == "concat" else width
        self.head = MixtureOfExpertsHead(pooled_size, num_classes, options.num_mixtures, options.l2)

    def _add_encoders(self) -> None:
        self.options.require_heads_divide(sum(self.feature_sizes))
        self.encoder = self._encoder(self.options.num_layers, sum(self.feature_sizes))

    def _encoder(self, num_layers: int, width: int) -> Encoder:
        options = self.options
        return Encoder(num_layers, width, options.num_heads, options.intermediate_size, options.dropout)

    def encode(self, frames_BTF: Tensor, mask_B11T: Tensor | None, *projected_BTP: Tensor) -> Tensor:
        """Encode frames [B, T, F] to [B, T, H]; `projected_BTP` are the frames' projections, if known."""
        return self.encoder(frames_BTF, mask_B11T, *projected_BTP)

    def embed_frames(self, frames_NF: Tensor) -> tuple[Tensor, ...]:
        """Embed frames as themselves and the first layer's projections: no position enters them."""
        return frames_NF, self.encoder.project(frames_NF)

    def score_windows(self, embedded: tuple[Tensor, ...], index_WT: Tensor, num_frames_W: Tensor) -> Tensor:
        """Score windows of embedded frames: the probabilities [W, C] that forward has for frames_NF[index_WT]."""
        frames_WTF, *projected_WTP = (part[index_WT] for part in embedded)
        self.check_inputs(frames_WTF, num_frames_W, None)
        mask_WT = self._mask(index_WT.shape[1], num_frames_W, None) if self.options.mask_padding else None
        return self._classify(frames_WTF, mask_WT, *projected_WTP)

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        frame_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """Score frames [B, T, F]: a random run of segment_frames in training, all T at inference."""
        self.check_inputs(frames, num_frames, frame_index)
        if frame_index is None:
            frame_index = self.sample_frame_index(num_frames, generator)
        if frame_index is not None:
            frames = gather_frames(frames, frame_index)
        mask_BT = self._mask(frames.shape[1], num_frames, frame_index) if self.options.mask_padding else None
        probabilities_BC = self._classify(frames, mask_BT)
        return ModelOutput(probabilities_BC, probabilities_BC.new_zeros(()))

    def _classify(self, frames_BTF: Tensor, mask_BT: Tensor | None, *projected_BTP: Tensor) -> Tensor:
        num_steps, segment_frames = frames_BTF.shape[1], self.options.segment_frames
        if self.options.pooling == "concat" and num_steps != segment_frames:
            raise ValueError(f"frames have T = {num_steps}: pooling 'concat' was built for {segment_frames}")
        encoded_BTH = self.encode(frames_BTF, None if mask_BT is None else mask_BT[:, None, None], *projected_BTP)
        return self.head(self.pooler(encoded_BTH, mask_BT))

    def _mask(self, num_steps: int, num_frames_B: Tensor, frame_index_BT: Tensor | None) -> Tensor:
        if frame_index_BT is None:
            frame_index_BT = torch.arange(num_steps, device=num_frames_B.device)[None]
        # At least one frame: a softmax over no frames at all would be NaN.
        return frame_index_BT < num_frames_B[:, None].clamp(min=1)


@register_model("bert_cross_attn_l2h8", num_heads=8, pooling="attention")
@register_model("bert_cross_mean_l2h8", num_heads=8, pooling="mean")
class BertCross(Bert):
    """An encoder for each modality, then one layer over both side by side."""

    splits_modalities = True

    def _add_encoders(self) -> None:
        rgb_size, audio_size = self.feature_sizes
        num_layers = self.options.num_layers
        require(num_layers >= 2, "num_layers", num_layers, "must be at least 2: the last one sees both modalities")
        self.options.require_heads_divide(rgb_size, audio_size)
        self.frame_encoder = self._encoder(num_layers - 1, rgb_size)
        self.audio_encoder = self._encoder(num_layers - 1, audio_size)
        self.all_encoder = self._encoder(1, rgb_size + audio_size)

    def embed_frames(self, frames_NF: Tensor) -> tuple[Tensor, ...]:
        """Embed frames as themselves and each modality's first projections."""
        rgb_NF, audio_NF = frames_NF.split(self.feature_sizes, dim=1)
        return frames_NF, self.frame_encoder.project(rgb_NF), self.audio_encoder.project(audio_NF)

    def encode(self, frames_BTF: Tensor, mask_B11T: Tensor | None, *projected_BTP: Tensor) -> Tensor:
        """Encode frames [B, T, F] to [B, T, H]; `projected_BTP` are each modality's projections, if known."""
        rgb_projected, audio_projected = projected_BTP or (None, None)
        rgb_BTF, audio_BTF = self.split_modalities(frames_BTF).values()
        rgb_BTF = self.frame_encoder(rgb_BTF, mask_B11T, rgb_projected)
        audio_BTF = self.audio_encoder(audio_BTF, mask_B11T, audio_projected)
        return self.all_encoder(torch.cat([rgb_BTF, audio_BTF], dim=2), mask_B11T)
