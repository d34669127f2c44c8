"""The product's own training step against the original's: loss, update and batch-norm statistics (SPEC section 15)."""

import numpy as np
import pytest
import torch

from models.tf_variables import tf_variables
from tests.golden import recipe
from tests.models.golden_harness import Golden, pick
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.optimizer import Optimizer, Schedule
from yt8m_assets.training.step import Stepper

CONFIG = TrainingConfig(num_steps=3, batch_size=3)


def golden_batch(golden: Golden, run: str) -> Batch:
    info = golden.info["runs"][run]
    raw = recipe.raw_bytes(info["raw_seed"], 3, info["T"], golden.info["rgb_dim"] + golden.info["audio_dim"])
    num_frames = torch.tensor(info["num_frames"])
    everything = torch.full_like(num_frames, info["T"])
    real = everything if run == "train_seg" else num_frames  # a segment's bytes past num_frames are real frames
    return Batch(
        frames=torch.from_numpy(raw),
        valid=torch.arange(info["T"])[None] < real[:, None],
        num_frames=num_frames,
        labels=golden.labels(run),
        label_weights=torch.zeros_like(golden.labels(run)),  # not used under label_weighting="all"
        video_ids=("a", "b", "c"),
        starts=torch.zeros(3, dtype=torch.int64),
        frame_index=golden.inputs(run)[2],
    )


@pytest.mark.parametrize("run", ["train_seg", "train_vid"])
@pytest.mark.parametrize("case", ["bert_milmean_l2h12", "netvlad_hs1024_cs8", "mixnextvlad_iter60"])
def test_three_steps_are_the_originals(case: str, run: str) -> None:
    golden = Golden(case)
    model = golden.load(golden.build(**({"dropout": 0.0} if "netvlad" not in case else no_dropout(case))), run)
    optimizer = Optimizer(dict(model.named_parameters()), CONFIG)
    stepper = Stepper(Objective(model, CONFIG), optimizer, CONFIG, device=torch.device("cpu"), seed=0)
    schedule = Schedule(config=CONFIG)
    batch = golden_batch(golden, run)
    expected = golden.arrays[f"{run}/label_loss_steps"]
    for step in range(3):
        loss = stepper.run(batch, step, schedule.learning_rate(step))
        assert float(loss) == pytest.approx(float(expected[step]), rel=1e-5)
        if step == 0:
            places = tf_variables(model)
            # A step is 1e-4; a gradient near 1e-8 rounds differently, and Adam magnifies that.
            for group, atol in (("adam_after1", 3e-5), ("bn_after1", 2e-6)):
                wanted = golden.expected(run, group)
                found = pick(places, wanted, lambda tensor: tensor)
                for name, value in wanted.items():
                    np.testing.assert_allclose(found[name], value, atol=atol, rtol=1e-5, err_msg=f"{group}/{name}")


def no_dropout(case: str) -> dict[str, float]:
    return {"dropout": 0.0} if case.startswith("mix") else {}
