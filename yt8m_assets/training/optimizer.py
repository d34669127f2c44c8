"""Adam as TensorFlow computes it, clipping that never waits for the device, the learning rate (SPEC section 7)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.training.config import TrainingConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Epsilon-hat: added to the root of the uncorrected second moment."""


class Optimizer:
    """Adam in TensorFlow's form: `theta -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon)`.

    torch adds its epsilon to the root of the corrected moment, which is the same with epsilon / sqrt(1 - b2^t); so
    torch's fused kernel does the work, one pass over each parameter. `adamw` decays matrices, not biases, norms and
    vectors. (torch.optim would do the same, and would import torch's compiler, which takes seconds.)
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> None:
        self.parameters = {name: value for name, value in parameters.items() if value.requires_grad}
        self.num_steps = 0
        self.weight_decay = config.weight_decay if config.optimizer == "adamw" else 0.0
        self.first = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.second = {name: torch.zeros_like(value) for name, value in self.parameters.items()}

    @torch.no_grad()
    def step(self, learning_rate: float, blocked: Tensor | None = None) -> None:
        """Apply the gradients, unless the scalar tensor `blocked` is 1 (decided on the device, without a sync)."""
        self.num_steps += 1
        epsilon = EPSILON / math.sqrt(1 - BETAS[1] ** self.num_steps)
        for decays in (True, False):
            names = [name for name, p in self.parameters.items() if p.grad is not None and (p.ndim >= 2) is decays]
            if not names:
                continue
            parameters = [self.parameters[name] for name in names]
            steps = torch.full((), float(self.num_steps), device=parameters[0].device)
            torch.ops.aten._fused_adamw_(
                parameters,
                [p.grad for p in parameters],
                [self.first[name] for name in names],
                [self.second[name] for name in names],
                [],
                [steps] * len(names),
                lr=learning_rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=self.weight_decay if decays else 0.0,
                eps=epsilon,
                amsgrad=False,
                maximize=False,
                found_inf=blocked,
            )

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments by parameter: `m/<name>` and `v/<name>`."""
        slots = {"m": self.first, "v": self.second}
        return {f"{slot}/{name}": moments[name] for slot, moments in slots.items() for name in moments}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Restore what `state_tensors` gave. Raises CheckpointMismatchError naming what is missing or mis-shaped."""
        for name, own in self.state_tensors().items():
            found = tensors.get(name)
            if found is None or found.shape != own.shape:
                shape = "nothing" if found is None else list(found.shape)
                raise CheckpointMismatchError(f"optimizer slot {name}: expected {list(own.shape)}, found {shape}")
            own.copy_(found)
        self.num_steps = num_steps


def gradient_norms(gradients: list[Tensor]) -> Tensor:
    """L2 norm of each gradient, float32 [number of gradients], on their device."""
    if gradients[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(gradients))
    # One float32 sum over tens of millions of values is off by up to 1 % on a CPU; rows first, in double then, is not.
    rows = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients]
    return torch.stack([torch.linalg.vector_norm(row, dtype=torch.float64) for row in rows]).float()


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], config: TrainingConfig) -> Tensor:
    """Scale gradients down in place to `clip_norm`, each variable by itself or all together.

    Returns the norms before clipping, float32 [number of gradients], on the gradients' device.
    """
    norms = gradient_norms(gradients)
    if config.clip == "none":
        return norms
    if config.clip == "global":
        scale = config.clip_norm / torch.linalg.vector_norm(norms).clamp(min=config.clip_norm)
        torch._foreach_mul_(gradients, scale)
        return norms
    if norms.device.type == "cpu":  # reading them is free here, and most gradients need no scaling
        for gradient, norm in zip(gradients, norms.tolist(), strict=True):
            if norm > config.clip_norm:
                gradient.mul_(config.clip_norm / norm)
        return norms
    torch._foreach_mul_(gradients, list((config.clip_norm / norms.clamp(min=config.clip_norm)).unbind()))
    return norms


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Maps a step of this stage (from 0) to its learning rate."""

    config: TrainingConfig
    """The run's configuration."""
    first_examples: int = 0
    """Examples that earlier stages have seen; the staircase goes on from there."""

    def learning_rate(self, step: int) -> float:
        """The rate of one step; the staircase counts examples over all stages, warm-up and cosine just this stage's."""
        config = self.config
        rate = config.learning_rate
        if step < config.warmup_steps:
            rate *= (step + 1) / (config.warmup_steps + 1)
        if config.schedule == "staircase":
            examples = self.first_examples + step * config.batch_size
            return rate * config.decay_rate ** (examples // config.decay_examples)
        length = max(config.num_steps - config.warmup_steps, 1)
        done = min(max(step - config.warmup_steps, 0) / length, 1.0)
        return rate * 0.5 * (1 + math.cos(math.pi * done))
