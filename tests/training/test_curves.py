"""A fixed-seed reference curve for each architecture: nothing changes the training silently.

Rewrite tests/golden/training_curves.json on purpose only: `python -m tests.training.test_curves`.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models import list_models
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.model_files import ModelSpec
from yt8m_assets.training.optimizer import Optimizer, Schedule
from yt8m_assets.training.randomness import derive_seed, isolated_randomness
from yt8m_assets.training.step import Stepper

GOLDEN = Path(__file__).parents[1] / "golden" / "training_curves.json"
CONFIG = TrainingConfig(num_steps=6, batch_size=8, learning_rate=1e-3, accumulation=2)
SMALL = {
    "bert": {"intermediate_size": 16},
    "gated": {"num_clusters": 4, "hidden_size": 16},
    "mix": {"num_clusters": 4, "hidden_size": 16, "num_groups": 4, "gating_reduction": 4},
}


def make_batch(num_frames: int) -> Batch:
    generator = torch.Generator().manual_seed(11)
    lengths = torch.tensor([num_frames, num_frames, 3, num_frames] * 2)
    return Batch(
        frames=torch.randint(0, 256, (8, num_frames, 96), dtype=torch.uint8, generator=generator),
        valid=torch.arange(num_frames)[None] < lengths[:, None],
        num_frames=lengths,
        labels=(torch.rand(8, 20, generator=generator) < 0.2).float(),
        label_weights=None,
        video_ids=tuple("abcdefgh"),
        starts=torch.zeros(8, dtype=torch.int64),
    )


def train(key: str) -> list[float]:
    """Six steps with dropout, batch norm, sampling and accumulation on."""
    spec = ModelSpec(
        architecture=key,
        overrides=SMALL[key.split("_")[0]],
        num_classes=20,
        feature_sizes=(64, 32),
        max_frames=30,
    )
    model = spec.build(4).train()
    stepper = Stepper(
        Objective(model, CONFIG),
        Optimizer(dict(model.named_parameters()), CONFIG),
        CONFIG,
        device=torch.device("cpu"),
        seed=9,
    )
    schedule, batch = Schedule(config=CONFIG), make_batch(9)
    losses = []
    with isolated_randomness(torch.device("cpu"), 0):
        for step in range(CONFIG.num_steps):
            generator = torch.Generator().manual_seed(derive_seed(9, "frames", step))
            drawn = replace(batch, frame_index=model.sample_frame_index(batch.num_frames, generator))
            losses.append(float(stepper.run(drawn, step, schedule.learning_rate(step))))
    return losses


@pytest.mark.parametrize("key", list_models())
def test_the_curve_is_the_recorded_one(key: str) -> None:
    losses = train(key)
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())[key], rel=1e-4)
    assert losses == train(key)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({key: train(key) for key in list_models()}, indent=1) + "\n")
