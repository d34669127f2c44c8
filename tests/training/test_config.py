from dataclasses import asdict, replace
from typing import Any

import pytest

from yt8m_assets.errors import ConfigError
from yt8m_assets.training.config import EXECUTION_FIELDS, TrainingConfig, computed_fields

CONFIG = TrainingConfig(num_steps=10)


def test_every_option_and_its_default_is_known_here() -> None:
    """The original's, where it has them. A new option is a decision: add it here too, with its test."""
    assert asdict(CONFIG) == {
        "num_steps": 10,
        "batch_size": 128,
        "learning_rate": 0.0001,
        "schedule": "staircase",
        "decay_rate": 0.9,
        "decay_examples": 4000000,
        "warmup_steps": 0,
        "continue_schedule": True,
        "optimizer": "adam",
        "weight_decay": 0.0,
        "clip": "per_variable",
        "clip_norm": 1.0,
        "label_weighting": "all",
        "positive_weight": 1.5,
        "mined_weight": 0.5,
        "label_smoothing": 0.0,
        "regularization_weight": 1.0,
        "window_frames": None,
        "windows_per_video": 1,
        "shuffle_buffer": 1024,
        "evaluate_every": None,
        "evaluation_videos": 8192,
        "keep_best": None,
        "checkpoint_every": 1000,
        "checkpoint_seconds": 600.0,
        "log_every": 50,
        "early_stopping": None,
        "ema_decay": None,
        "swa_last": 0,
        "precision": "float32",
        "float32_matmul_precision": "highest",
        "compile": False,
        "cuda_graphs": True,
        "accumulation": 1,
        "activation_checkpointing": False,
        "num_processes": 1,
        "sync_batchnorm": False,
        "deterministic": False,
    }


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("num_steps", 0, -1),
        ("batch_size", 1, 0),
        ("learning_rate", 1e-9, 0.0),
        ("decay_examples", 1, 0),
        ("clip_norm", 1e-9, 0.0),
        ("checkpoint_every", 1, 0),
        ("log_every", 1, 0),
        ("windows_per_video", 1, 0),
        ("shuffle_buffer", 1, 0),
        ("accumulation", 1, 0),
        ("num_processes", 1, 0),
        ("warmup_steps", 0, -1),
        ("weight_decay", 0.0, -1e-9),
        ("regularization_weight", 0.0, -1e-9),
        ("swa_last", 0, -1),
        ("evaluation_videos", 0, -1),
        ("window_frames", 1, 0),
        ("window_frames", None, -1),
        ("evaluate_every", 1, 0),
        ("early_stopping", 1, 0),
        ("checkpoint_seconds", 1e-9, 0.0),
        ("decay_rate", 1, 1.5),
        ("decay_rate", 1e-9, 0.0),
        ("label_smoothing", 0.0, -1e-9),
        ("label_smoothing", 0.999, 1.0),
        ("ema_decay", 1e-9, 0.0),
        ("ema_decay", 0.999, 1.0),
        ("ema_decay", None, 1.5),
        ("schedule", "staircase", "linear"),
        ("clip", "none", "value"),
        ("optimizer", "adam", "sgd"),
        ("label_weighting", "rated", "some"),
        ("precision", "bfloat16", "float16"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(field: str, good: Any, bad: Any) -> None:
    assert getattr(replace(CONFIG, **{field: good}), field) == good
    with pytest.raises(ConfigError, match=rf"training\.{field} = "):
        replace(CONFIG, **{field: bad})


def test_a_batch_must_split_over_ranks_and_pieces() -> None:
    with pytest.raises(ConfigError, match=r"training\.batch_size = 10: must be a multiple of .* = 4"):
        TrainingConfig(num_steps=1, batch_size=10, accumulation=2, num_processes=2)


def test_a_buffer_smaller_than_a_batch_would_put_windows_of_one_video_into_it() -> None:
    few = TrainingConfig(num_steps=1, batch_size=16, shuffle_buffer=8)
    with pytest.raises(ConfigError, match=r"training\.shuffle_buffer = 8: must be at least batch_size = 16"):
        replace(few, windows_per_video=2)


def test_micro_batches_cannot_share_statistics() -> None:
    shared = TrainingConfig(num_steps=1, batch_size=8, num_processes=2, sync_batchnorm=True)
    with pytest.raises(ConfigError, match=r"training\.sync_batchnorm = True: .* not over the 2 micro-batches"):
        replace(shared, accumulation=2)


def never() -> bool:
    raise AssertionError("asked without need: the answer costs an import of torch")


def test_how_a_batch_is_split_is_computed_with_batch_norm_alone() -> None:
    assert not set(computed_fields(CONFIG, never)) & set(EXECUTION_FIELDS)
    for split in ({"accumulation": 4}, {"num_processes": 4}):
        config = replace(CONFIG, **split)
        assert computed_fields(config, lambda: False) == computed_fields(CONFIG, never)
        found = computed_fields(config, lambda: True)
        assert found == computed_fields(CONFIG, never) | {"accumulation": 1, "num_processes": 1} | split
    synchronized = computed_fields(replace(CONFIG, num_processes=4, sync_batchnorm=True), never)
    assert synchronized == computed_fields(CONFIG, never) | {"sync_batchnorm": True}
