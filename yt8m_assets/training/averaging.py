"""Averages of the weights over training: exponential (EMA) and over the last evaluated points (SWA)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from yt8m_assets.errors import CheckpointMismatchError


class WeightAverage:
    """A running average of a model's weights, on the model's device.

    Exponential with a decay (Polyak averaging; the decay ramps up as (1 + n) / (10 + n), so that short runs forget
    their start), or the plain mean where decay is None (SWA, https://arxiv.org/abs/1803.05407). Batch-norm statistics
    are not averaged: what each point's layers saw is not what the averaged weights see. They are measured anew
    (statistics.py) and kept in `statistics`.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.count = 0
        self.source = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.average = {name: value.clone() for name, value in self.source.items()}
        self.statistics: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        if self.decay is None:
            weight = 1 / (self.count + 1)
        else:
            weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(list(self.average.values()), list(self.source.values()), weight)
        self.count += 1
        self.statistics = None

    def load(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Restore an average. Raises CheckpointMismatchError naming a missing tensor."""
        for name, value in self.average.items():
            if name not in tensors:
                raise CheckpointMismatchError(f"weight average: {name} is missing from the checkpoint")
            value.copy_(tensors[name])
        self.count = count
