"""Adam as TensorFlow computes it, and gradient clipping that never waits for the device (SPEC section 7)."""

import math
from collections.abc import Mapping

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
    torch's fused kernel does the work. `adamw` decays matrices, not biases, norms and vectors.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> None:
        self.parameters = {name: value for name, value in parameters.items() if value.requires_grad}
        self.num_steps = 0
        decay = config.weight_decay if config.optimizer == "adamw" else 0.0
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in self.parameters.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, betas=BETAS, fused=True
        )

    def step(self, learning_rate: float, blocked: Tensor | None = None) -> None:
        """Apply the gradients, unless the scalar tensor `blocked` is 1 (decided on the device, without a sync)."""
        self.num_steps += 1
        for group in self.adam.param_groups:
            group["lr"] = learning_rate
            group["eps"] = EPSILON / math.sqrt(1 - BETAS[1] ** self.num_steps)
        self.adam.found_inf = blocked  # type: ignore[attr-defined]
        self.adam.step()

    def zero_gradients(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments by parameter: `m/<name>` and `v/<name>`; zeros before the first step."""
        tensors = {}
        for name, parameter in self.parameters.items():
            state = self.adam.state.get(parameter) or {}
            tensors[f"m/{name}"] = state.get("exp_avg", torch.zeros_like(parameter))
            tensors[f"v/{name}"] = state.get("exp_avg_sq", torch.zeros_like(parameter))
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Restore what `state_tensors` gave. Raises CheckpointMismatchError naming what is missing or mis-shaped."""
        for name, parameter in self.parameters.items():
            for slot in ("m", "v"):
                found = tensors.get(f"{slot}/{name}")
                if found is None or found.shape != parameter.shape:
                    shape = "nothing" if found is None else list(found.shape)
                    raise CheckpointMismatchError(
                        f"optimizer slot {slot}/{name}: expected {list(parameter.shape)}, found {shape}"
                    )
            self.adam.state[parameter] = {
                "step": torch.tensor(float(num_steps), device=parameter.device),
                "exp_avg": tensors[f"m/{name}"].to(parameter.device, copy=True),
                "exp_avg_sq": tensors[f"v/{name}"].to(parameter.device, copy=True),
            }
        self.num_steps = num_steps


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], config: TrainingConfig) -> Tensor:
    """Scale gradients down in place to `clip_norm`, each variable by itself or all together.

    Returns the norms before clipping, float32 [number of gradients], on the gradients' device.
    """
    norms = torch.stack(torch._foreach_norm(gradients))
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
