"""Every option of a training can be named in a recipe, and options other than the original's train."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import MIX, make_recipe, prepare_store
from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.loading import load_recipe
from yt8m_assets.stages.training import finetune, pretrain
from yt8m_assets.training import loss
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.loss import cross_entropy
from yt8m_assets.training.step import Stepper

CHANGED: dict[str, Any] = {
    "num_steps": 12,
    "batch_size": 8,
    "learning_rate": 0.002,
    "schedule": "cosine",
    "decay_rate": 0.8,
    "decay_examples": 1_000_000,
    "warmup_steps": 3,
    "continue_schedule": False,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "clip": "global",
    "clip_norm": 0.5,
    "label_weighting": "mined",
    "positive_weight": 2.0,
    "mined_weight": 0.25,
    "label_smoothing": 0.1,
    "regularization_weight": 0.5,
    "window_frames": 5,
    "windows_per_video": 2,
    "shuffle_buffer": 16,
    "evaluate_every": 4,
    "evaluation_videos": 16,
    "keep_best": True,
    "checkpoint_every": 5,
    "checkpoint_seconds": 30.0,
    "log_every": 1,
    "early_stopping": 4,
    "ema_decay": 0.9,
    "swa_last": 2,
    "precision": "bfloat16",
    "float32_matmul_precision": "high",
    "compile": True,
    "cuda_graphs": False,
    "accumulation": 2,
    "activation_checkpointing": True,
    "num_processes": 2,
    "deterministic": True,
}
"""A value other than the default for every field but one."""
SYNCHRONIZED = {"num_processes": 2, "sync_batchnorm": True}
"""That one, which refuses accumulation."""


def test_every_option_is_reachable_from_a_json_recipe(tmp_path: Path) -> None:
    assert {*CHANGED, *SYNCHRONIZED} == {field.name for field in fields(TrainingConfig)}
    assert all(value != getattr(TrainingConfig(num_steps=0), name) for name, value in (CHANGED | SYNCHRONIZED).items())
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"base": "demo", "models": {"bert_l2h12": {"finetuning": SYNCHRONIZED}}}))
    assert load_recipe(str(path)).model("bert_l2h12").finetuning.sync_batchnorm
    path.write_text(json.dumps({"base": "demo", "models": {"bert_l2h12": {"finetuning": CHANGED}}}))
    model = load_recipe(str(path)).model("bert_l2h12")
    assert model.finetuning == TrainingConfig(**CHANGED)
    assert model.pretraining == load_recipe("demo").model("bert_l2h12").pretraining


def test_all_of_them_together_train_in_one_process(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compilation and several processes have tests of their own; the rest works together."""
    config = TrainingConfig(**{**CHANGED, "num_processes": 1, "compile": False})
    recipe = make_recipe(shards, replace(MIX, pretraining=replace(config, swa_last=0), finetuning=config))
    store, tracking = prepare_store(tmp_path, recipe), MemoryTracking()
    run, modes = Stepper.run, []

    def watched(self: Stepper, batch: Batch, step: int, rate: float) -> torch.Tensor:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return run(self, batch, step, rate)

    monkeypatch.setattr(Stepper, "run", watched)
    for stage in (pretrain, finetune):
        manifest = stage(recipe, store, "mix", tracking=tracking, progress=NullProgress(), run_tags={}).manifest
        rates = [value for _, value in tracking.runs[-1].series("train/learning_rate")]
        assert rates[:4] == pytest.approx([0.0005, 0.001, 0.0015, 0.002])
        assert rates[11] < rates[6] < 0.002
    assert modes == [True] * 24
    assert not torch.are_deterministic_algorithms_enabled()
    assert set(manifest.metadata["candidates"]) == {"best", "ema", "swa"}
    assert manifest.metadata["map"] > 0.5


def test_mined_negatives_reach_the_loss(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the rated classes that the shards publish, with the recipe's weights; pre-training knows nothing of them."""
    mined = replace(MIX.finetuning, label_weighting="mined", positive_weight=3.0, mined_weight=0.4, num_steps=1)
    recipe = make_recipe(shards, replace(MIX, pretraining=replace(MIX.pretraining, num_steps=1), finetuning=mined))
    store, seen = prepare_store(tmp_path, recipe), []

    def watched(probabilities: torch.Tensor, labels: torch.Tensor, weights: Any, smoothing: float) -> torch.Tensor:
        seen.append((labels, weights))
        return cross_entropy(probabilities, labels, weights, smoothing)

    monkeypatch.setattr(loss, "cross_entropy", watched)
    for stage in (pretrain, finetune):
        stage(recipe, store, "mix", tracking=MemoryTracking(), progress=NullProgress(), run_tags={})
    (_, none), (labels, weights) = seen
    assert none is None
    rated = (weights == 1) | (weights == 3)
    assert torch.equal(weights[rated], 1 + 2 * labels[rated])
    unnamed = (weights > 0) & ~rated
    assert unnamed.any()
    assert not unnamed[:, 4:].any(), "classes 4 and 5 are rated nowhere"
    some = unnamed.any(1)
    assert torch.allclose(torch.where(unnamed, weights, 0).sum(1)[some], torch.tensor(0.4))
