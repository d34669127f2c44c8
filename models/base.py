"""What every architecture has in common: its output, its options, how it samples frames, and its L2 term."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from models.sampling import draw_uniform, evenly_spaced, random_frames, random_sequence
from models.transformer import EncoderLayer


class ModelOutput(NamedTuple):
    """What a forward pass gives: probabilities [B, C], a scalar regularization_loss (distillation in training, else 0).

    branch_probabilities [B, S, C] are the members' own, only where a model was asked for a loss on them; else None.
    """

    probabilities: Tensor
    regularization_loss: Tensor
    branch_probabilities: Tensor | None = None


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raise the ValueError that names an option, its value and the rule it breaks."""
    if not condition:
        raise ValueError(f"{field} = {value!r}: {rule}")


def require_positive(options: object, *names: str) -> None:
    """Require options to be integers above zero."""
    for name in names:
        value = getattr(options, name)
        require(isinstance(value, int) and value > 0, name, value, "must be an integer above zero")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a model; an architecture derives its own frozen dataclass and checks it in __post_init__."""


def sees_videos(model: nn.Module) -> bool:
    """Whether a model scores the segments of a video together: `sampling` "video"."""
    return getattr(model, "sampling", None) == "video"


MODALITIES = ("video", "audio")
"""The parts of a frame, as the original calls them."""


class FrameModel(nn.Module):
    """Base of all architectures: frames [B, T, F] of a video or segment to class probabilities [B, C].

    A subclass sets `Options`, `sampling`, `num_sampled_frames` and `head`, and implements `forward`. The head offers
    `l2_terms()` and `restrict_classes(class_ids)`, as those of models.heads do.
    """

    Options: ClassVar[type[Any]] = Options
    sampling: ClassVar[Literal["sequence", "frames", "video"]]
    """What training draws: a run of consecutive frames (from all frames at inference), or single frames; or nothing,
    for a model that sees whole videos ("video": see `score_videos`)."""
    tf_rules: ClassVar[Sequence[tuple[str, str]]] = ()
    """Substitutions (pattern, replacement) from this model's parameter names to the original's variables."""
    branch_loss_weight: float = 0.0
    """Factor of a loss on `ModelOutput.branch_probabilities`; 0: the output has none."""
    splits_modalities: ClassVar[bool] = False
    """Whether it looks at rgb and audio apart, so that both must be there."""
    head: Any
    num_sampled_frames: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "l2_penalty" in vars(cls):
            raise TypeError(f"{cls.__name__}.l2_penalty: training adds the gradient itself; give `l2_terms` instead")

    def __init__(self, num_classes: int, feature_sizes: tuple[int, int], options: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_sizes = feature_sizes
        self.options = options

    def forward(
        self,
        frames: Tensor,
        num_frames: Tensor,
        frame_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ModelOutput:
        """Score videos or segments.

        frames [B, T, F] float32, dequantised, zero-padded, L2-normalised per frame (SPEC section 1); num_frames [B]
        int; frame_index [B, N] int64, the frames to use instead of the model's own draws; generator of the training
        draws. Inference draws nothing at random.
        """
        raise TypeError(f"{type(self).__name__} does not say how it scores frames: give it a forward method")

    def embed_frames(self, frames_NF: Tensor) -> tuple[Tensor, ...]:
        """Compute, at inference, what a frame contributes wherever it stands: tensors of N rows, for `score_windows`.

        Windows that overlap share it. By default that is nothing but the frame itself.
        """
        return (frames_NF,)

    def score_windows(self, embedded: tuple[Tensor, ...], index_WT: Tensor, num_frames_W: Tensor) -> Tensor:
        """Score windows of embedded frames: the probabilities [W, C] that forward has for frames_NF[index_WT]."""
        (frames_NF,) = embedded
        return self(frames_NF[index_WT], num_frames_W).probabilities

    def score_videos(self, embedded: tuple[Tensor, ...], index_BST: Tensor, num_frames_BS: Tensor) -> Tensor:
        """Score every segment of whole videos: probabilities [B, S, C] of models with `sampling` "video".

        index_BST are the rows, among the embedded frames, of each segment's window, a video's windows in their order;
        num_frames_BS is 0 where a video has no further segment. Windows that are shifted are so all alike: the video is
        seen moved under the grid of its segments. Such a model's forward scores the video, or with frame_index [B, 1]
        the segment of each that holds this frame; there all frames are given and nothing is drawn.
        """
        raise TypeError(f"{type(self).__name__} scores windows by themselves, not the segments of a video together")

    def sample_frame_index(self, num_frames: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Choose the frames this model looks at: int64 [B, N], or None for all of them (SPEC section 2).

        Training draws from the generator (call this outside a compiled graph and pass the result as frame_index);
        inference is evenly spaced for models of single frames, and all frames for models of sequences.
        """
        if self.sampling == "video":
            return None
        if not self.training:
            return None if self.sampling == "sequence" else evenly_spaced(num_frames, self.num_sampled_frames)
        num_draws = 1 if self.sampling == "sequence" else self.num_sampled_frames
        uniform_BN = draw_uniform(num_frames.shape[0], num_draws, num_frames.device, generator)
        if self.sampling == "sequence":
            return random_sequence(uniform_BN, num_frames, self.num_sampled_frames)
        return random_frames(uniform_BN, num_frames)

    def check_inputs(self, frames: Tensor, num_frames: Tensor, frame_index: Tensor | None) -> None:
        """Refuse inputs whose shapes do not belong together, by name."""
        size = sum(self.feature_sizes)
        if frames.ndim != 3 or frames.shape[2] != size:
            raise ValueError(f"frames have shape {tuple(frames.shape)}: expected [B, T, {size}]")
        if num_frames.ndim != 1 or num_frames.shape[0] != frames.shape[0]:
            raise ValueError(f"num_frames has shape {tuple(num_frames.shape)}: expected [{frames.shape[0]}]")
        if frame_index is None:
            return
        if frame_index.ndim != 2 or frame_index.shape[0] != frames.shape[0]:
            raise ValueError(f"frame_index has shape {tuple(frame_index.shape)}: expected [{frames.shape[0]}, N]")
        expected = {"frames": self.num_sampled_frames, "video": 1}.get(self.sampling, frame_index.shape[1])
        if frame_index.shape[1] != expected:
            raise ValueError(f"frame_index has {frame_index.shape[1]} columns: expected {expected}")

    def split_modalities(self, frames: Tensor) -> dict[str, Tensor]:
        """Split frames [..., F] into their parts, `video` (rgb) and `audio`, without one that the data lacks."""
        parts = zip(MODALITIES, frames.split(self.feature_sizes, dim=-1), strict=True)
        return {name: part for name, part in parts if part.shape[-1]}

    def l2_terms(self) -> list[tuple[Tensor, float]]:
        """The weights under an L2 term of the original's objective, and its factor (SPEC section 3)."""
        return list(self.head.l2_terms())

    def l2_penalty(self) -> Tensor:
        """Sum the L2 terms, half of the factor times the squared weights each: a scalar.

        Training adds their gradient, factor times weights, by itself.
        """
        return sum((0.5 * factor * weights.square().sum() for weights, factor in self.l2_terms()), torch.zeros(()))

    def hold_linear_weights(self, dtype: torch.dtype) -> Self:
        """Keep the linear layers' weights in `dtype`, for inference under autocast to it; returns self.

        Autocast would cast them anew on every pass, and encoder layers would join theirs; the result is the same bit
        for bit. A model that trains, or loads other weights, must not be held.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)
        for module in self.modules():
            if isinstance(module, EncoderLayer):
                module.hold_projection()
        return self

    def restrict_classes(self, class_ids: Tensor) -> Self:
        """Make an inference copy whose probabilities are the columns class_ids (int64 [R]) of this model's.

        Everything but the head is shared with this model, so the copy costs just the kept columns. It follows later
        changes of the shared weights but not of the head. Both are left in evaluation mode: call train() on this model
        to go on training it.
        """
        if class_ids.ndim != 1 or class_ids.numel() == 0:
            raise ValueError(f"class_ids has shape {tuple(class_ids.shape)}: expected [R] with at least one class")
        if int(class_ids.min()) < 0 or int(class_ids.max()) >= self.num_classes:
            raise ValueError(
                f"class_ids go from {int(class_ids.min())} to {int(class_ids.max())}: there are only "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}"
            )
        self.eval()
        restricted = copy.copy(self)
        restricted._modules = dict(self._modules)
        restricted.head = self.head.restrict_classes(class_ids)
        return restricted.eval()
