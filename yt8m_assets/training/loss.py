"""The training objective (SPEC section 7). Shapes: B batch, C classes."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from models import ModelOutput
from models.sampling import gather_frames
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.recompute import made_anew

LOG_OFFSET = 1e-5
"""Added inside both logarithms, as the original does."""


def cross_entropy(
    probabilities: Tensor, labels: Tensor, label_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Binary cross entropy summed over classes and averaged over the batch: a scalar (SPEC section 7).

    probabilities [B, C] float; labels [B, C] float targets in [0, 1]; label_weights [B, C] factors per pair, or None
    for one everywhere; label_smoothing moves that share of each target towards one half.
    """
    probabilities = probabilities.float()
    targets = labels * (1 - label_smoothing) + 0.5 * label_smoothing if label_smoothing else labels
    positive = targets * (probabilities + LOG_OFFSET).log()
    negative = (1 - targets) * (1 - probabilities + LOG_OFFSET).log()
    losses = -(positive + negative)
    if label_weights is not None:
        losses = losses * label_weights
    return losses.sum(1).mean()


class Objective(nn.Module):
    """Model and loss in one module, from uint8 frames to the loss: what is compiled and what data parallelism wraps."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(
        self,
        frames: Tensor,
        valid: Tensor,
        num_frames: Tensor,
        labels: Tensor,
        label_weights: Tensor | None,
        frame_index: Tensor | None,
        share: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, all but the L2 terms, and the bare cross entropy (detached), both scalars.

        frames uint8 [B, T, F]; valid bool [B, T]; num_frames [B]; labels and label_weights [B, C]; frame_index [B, N]
        or None. `share` is this micro-batch's part of the step. The gradient of the L2 terms is added by the step.
        """
        config = self.config
        if self.model.sampling == "frames" and frame_index is not None and frame_index.shape[1] < frames.shape[1]:
            # As bytes, so that no float32 copy of the other frames is ever made. These models ask for no position.
            frames, valid = gather_frames(frames, frame_index), valid.gather(1, frame_index)
            frame_index = torch.arange(frame_index.shape[1], device=frames.device).expand_as(frame_index)
        inputs = model_inputs(frames, valid)
        sparing = config.activation_checkpointing and not torch.compiler.is_compiling()
        with made_anew(lambda: model_inputs(frames, valid), inputs) if sparing else nullcontext():
            output: ModelOutput = self.model(inputs, num_frames, frame_index=frame_index)
        del inputs
        weights = None if config.label_weighting == "all" else label_weights
        label_loss = cross_entropy(output.probabilities, labels, weights, config.label_smoothing)
        total = (label_loss + config.regularization_weight * output.regularization_loss) * share
        if output.branch_probabilities is not None:
            branches = output.branch_probabilities.unbind(1)
            own = torch.stack([cross_entropy(p, labels, weights, config.label_smoothing) for p in branches]).sum()
            total = total + self.model.branch_loss_weight * own * share  # type: ignore[operator]
        return total, label_loss.detach()
