"""The learning rate of every step (SPEC section 7)."""

import math
from dataclasses import dataclass

from yt8m_assets.training.config import TrainingConfig


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
