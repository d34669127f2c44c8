"""From uint8 batches to model inputs, in torch, on the device of the batch. Shapes: B batch, T frames, F features."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def valid_rows(num_frames: "torch.Tensor", num_rows: int) -> "torch.Tensor":
    """bool [B, num_rows]: which rows are real frames when a video's `num_frames` (int [B]) come first."""
    import torch

    return torch.arange(num_rows, device=num_frames.device)[None, :] < num_frames[:, None]


def dequantise_frames(frames: "torch.Tensor", valid: "torch.Tensor") -> "torch.Tensor":
    """uint8 [B, T, F] and bool [B, T] -> float32 [B, T, F]; rows that are not valid are 0.0 (SPEC section 1)."""
    import torch

    features = frames.to(torch.float32).mul_(4 / 255).add_(4 / 512 - 2)
    return features.mul_(valid[..., None])


def normalise_frames(features: "torch.Tensor") -> "torch.Tensor":
    """L2 normalisation of each frame over both modalities jointly; a zero frame stays zero (SPEC section 1).

    In place, and squared part by part: these are the largest tensors of a training on whole videos.
    """
    import torch

    squares = torch.cat([part.square().sum(-1, keepdim=True) for part in features.chunk(8)])
    return features.mul_(squares.clamp_(min=1e-12).rsqrt_())


def model_inputs(frames: "torch.Tensor", valid: "torch.Tensor", max_frames: int | None = None) -> "torch.Tensor":
    """What the models are fed: dequantised, zero where not valid, L2-normalised (SPEC section 1).

    frames: uint8 [B, T, F]; valid: bool [B, T], false for padding (byte 0 is a feature value, not padding).
    max_frames: rows of the result; zero rows are appended or later rows dropped; None keeps T.
    Returns float32 [B, max_frames or T, F] on the device of `frames`.
    """
    import torch

    if max_frames is not None and frames.shape[1] > max_frames:
        frames, valid = frames[:, :max_frames], valid[:, :max_frames]
    features = normalise_frames(dequantise_frames(frames, valid))
    if max_frames is not None and features.shape[1] < max_frames:
        features = torch.nn.functional.pad(features, (0, 0, 0, max_frames - features.shape[1]))
    return features
