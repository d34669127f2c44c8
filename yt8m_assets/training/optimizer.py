"""Adam as TensorFlow computes it, clipping that never waits for the device, the learning rate (SPEC section 7)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.training.config import TrainingConfig

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""Epsilon-hat: added to the root of the uncorrected second moment."""
LARGE = 2**18
"""Elements from which a gradient is clipped by the update itself on a GPU, which saves a pass over its memory."""


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
        device = next((value.device for value in self.parameters.values()), torch.device("cpu"))
        self.rate = 0.0
        self.corrected, self.decay = (torch.zeros((), device=device) for _ in range(2))
        self.late = torch.full((), 1e9, device=device)
        """A step so late that torch's own corrections are 1."""

    def begin(self, learning_rate: float) -> None:
        """Count a step and set its learning rate."""
        self.num_steps += 1
        self.rate = learning_rate
        if self.corrected.device.type != "cpu":
            first, second = (1 - beta**self.num_steps for beta in BETAS)
            self.corrected.fill_(learning_rate * math.sqrt(second) / first)
            self.decay.fill_(1 - learning_rate * self.weight_decay)

    @torch.no_grad()
    def apply(self, blocked: Tensor | None = None, divisors: Tensor | None = None) -> None:
        """Apply the gradients, unless the scalar tensor `blocked` is 1 (decided on the device, without a sync).

        `divisors`: see `clip_gradients`. On a GPU all that changes from step to step is read from the device's memory,
        so that a CUDA graph can hold this: both corrections are in the rate, torch's own are switched off, and the
        decay is a pass of its own.
        """
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        matrices = [name for name in names if self.parameters[name].ndim >= 2]
        if self.corrected.device.type == "cpu":
            steps = torch.full((), float(self.num_steps))
            epsilon = EPSILON / math.sqrt(1 - BETAS[1] ** self.num_steps)
            vectors = [name for name in names if self.parameters[name].ndim < 2]
            for group, decay in ((matrices, self.weight_decay), (vectors, 0.0)):
                self._update(group, steps, blocked, lr=self.rate, weight_decay=decay, eps=epsilon)
            return
        if self.weight_decay and matrices:
            kept = self.decay if blocked is None else torch.where(blocked > 0, 1.0, self.decay)
            torch._foreach_mul_([self.parameters[name] for name in matrices], kept)
        options: Any = {"lr": self.corrected, "weight_decay": 0.0, "eps": EPSILON}
        groups: list[tuple[list[str], Tensor | None]] = [(names, None)]
        if divisors is not None:
            scales = dict(zip(names, divisors.unbind(), strict=True))
            groups = [([name], scales[name]) for name in names if _is_large(self.parameters[name])]
            groups.append(([name for name in names if not _is_large(self.parameters[name])], None))
        for group, scale in groups:
            self._update(group, self.late, blocked, grad_scale=scale, **options)

    def _update(
        self, names: list[str], step: Tensor, blocked: Tensor | None, *, lr: float | Tensor, **rest: Any
    ) -> None:
        # Named, for torch would take a rate on the device for a number, and wait for it.
        form = "tensor_lr" if isinstance(lr, Tensor) else "default"
        if names:
            getattr(torch.ops.aten._fused_adamw_, form)(
                [self.parameters[name] for name in names],
                [self.parameters[name].grad for name in names],
                [self.first[name] for name in names],
                [self.second[name] for name in names],
                [],
                [step] * len(names),
                lr=lr,
                beta1=BETAS[0],
                beta2=BETAS[1],
                amsgrad=False,
                maximize=False,
                found_inf=blocked,
                **rest,
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
def clip_gradients(gradients: list[Tensor], config: TrainingConfig) -> tuple[Tensor, Tensor | None]:
    """Scale gradients down to `clip_norm`, each variable by itself or all together.

    Returns the norms before clipping, float32 [number of gradients], on the gradients' device; and for `apply` what
    large gradients are still to be divided by, likewise, or None. Off a GPU all is done here, in place.
    """
    norms = gradient_norms(gradients)
    if config.clip == "none":
        return norms, None
    whole = torch.linalg.vector_norm(norms) if config.clip == "global" else None
    if norms.device.type == "cpu":
        if whole is not None:
            torch._foreach_mul_(gradients, config.clip_norm / whole.clamp(min=config.clip_norm))
            return norms, None
        for gradient, norm in zip(gradients, norms.tolist(), strict=True):  # most need no scaling
            if norm > config.clip_norm:
                gradient.mul_(config.clip_norm / norm)
        return norms, None
    divisors = ((norms if whole is None else whole.expand_as(norms)) / config.clip_norm).clamp(min=1)
    small = [number for number, gradient in enumerate(gradients) if not _is_large(gradient)]
    if small:
        parts = divisors.unbind()
        torch._foreach_div_([gradients[number] for number in small], [parts[number] for number in small])
    return norms, divisors


def _is_large(gradient: Tensor) -> bool:
    return gradient.numel() >= LARGE


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
