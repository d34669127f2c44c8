"""What a training run is told: one frozen dataclass for pre-training and fine-tuning alike (SPEC section 7)."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from yt8m_assets.errors import ConfigError

EXECUTION_FIELDS = (
    "num_processes",
    "accumulation",
    "compile",
    "cuda_graphs",
    "activation_checkpointing",
    "checkpoint_every",
    "checkpoint_seconds",
    "log_every",
    "deterministic",
)
"""Fields of TrainingConfig that say how a run is executed, not what it computes: changing them redoes nothing.

But see `computed_fields`: batch norm sees how a batch is split.
"""
SPLIT_FIELDS = ("accumulation", "num_processes")
"""Fields of these that split the batch of a step."""


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"training.{field} = {value!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Length, batch, objective, optimiser and cadence of one training run.

    The defaults are the original's (`original` preset of SPEC section 7); a recipe names what it changes.
    """

    num_steps: int
    """Optimiser steps of this stage; fine-tuning continues the pre-training's count for the learning rate."""
    batch_size: int = 128
    """Examples an optimiser step sees, over all ranks and accumulation steps together."""
    learning_rate: float = 1e-4
    """Base learning rate."""
    schedule: Literal["staircase", "cosine"] = "staircase"
    """Staircase decay by examples seen (the original), or warm-up followed by a cosine to zero."""
    decay_rate: float = 0.9
    """Factor of each staircase step."""
    decay_examples: int = 4_000_000
    """Examples between two staircase steps (the original's README says 2 M, its code does 4 M)."""
    warmup_steps: int = 0
    """Steps of linear warm-up, with either schedule."""
    continue_schedule: bool = True
    """In fine-tuning: go on counting from the pre-training's last step and restore its Adam slots, as the original."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam with TensorFlow's epsilon-hat form (the original), or decoupled weight decay."""
    weight_decay: float = 0.0
    """Decoupled weight decay, for adamw."""
    clip: Literal["per_variable", "global", "none"] = "per_variable"
    """Gradient clipping: each variable by itself (the original), all together, or none."""
    clip_norm: float = 1.0
    """L2 norm above which a gradient is scaled down."""
    label_weighting: Literal["all", "rated", "mined"] = "all"
    """In fine-tuning: every unrated class is a negative (the original), or only rated pairs enter the loss, or beside
    them the mean over those rated classes that neither a label nor a rating of the video names."""
    positive_weight: float = 1.5
    """With "mined": factor of a rated positive."""
    mined_weight: float = 0.5
    """With "mined": factor of the mean over the unnamed classes."""
    label_smoothing: float = 0.0
    """Share of each target moved towards one half."""
    regularization_weight: float = 1.0
    """Factor on the model's own regularisation (distillation) and L2 terms."""
    window_frames: int | None = None
    """Contiguous frames the data set draws per example; None feeds the whole video, and the model samples."""
    windows_per_video: int = 1
    """Windows taken from each video in an epoch."""
    shuffle_buffer: int = 1024
    """Examples held for shuffling."""
    evaluate_every: int | None = None
    """Least steps between two hold-out evaluations, which lie evenly; None: only at the end."""
    evaluation_videos: int = 8192
    """In pre-training: held-out videos with video labels that an evaluation scores, at most; 0: no evaluation."""
    keep_best: bool | None = None
    """Publish the best evaluated weights instead of the last; None: in fine-tuning."""
    checkpoint_every: int = 1000
    """Most steps that a kill costs: a checkpoint is begun every half of it, and written while training goes on."""
    checkpoint_seconds: float | None = 600.0
    """Most seconds that a kill costs, likewise; None: only steps count."""
    log_every: int = 50
    """Steps between two metric points."""
    early_stopping: int | None = None
    """Evaluations without a better score (MAP, in pre-training GAP@20) after which training ends; None: never."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights; None: no average is kept.

    Batch-norm statistics of averages are measured anew at the end, on up to 100 batches.
    """
    swa_last: int = 0
    """Evaluated checkpoints at the end whose weights are averaged (SWA) and compared; 0: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass (autocast); weights and optimiser stay float32."""
    float32_matmul_precision: Literal["highest", "high"] = "highest"
    """On a GPU, how float32 matrix products are computed: float32, or TF32 ("high"; 10 bits of mantissa)."""
    compile: bool = False
    """Use torch.compile; where it fails training goes on uncompiled, with the reason logged."""
    cuda_graphs: bool = True
    """On one GPU, record a step's kernels and launch them at once; not with activation_checkpointing."""
    accumulation: int = 1
    """Micro-batches an optimiser step is split into; divides batch_size."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass, for full-video models on a small GPU."""
    num_processes: int = 1
    """Processes (GPUs) of data-parallel training, started through torchrun when above one."""
    sync_batchnorm: bool = False
    """Share batch-norm statistics over processes; micro-batches run one after another and cannot share theirs."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms only."""

    def __post_init__(self) -> None:
        positive = ("batch_size", "learning_rate", "decay_examples", "clip_norm", "checkpoint_every", "log_every")
        for field in (*positive, "windows_per_video", "shuffle_buffer", "accumulation", "num_processes"):
            _require(getattr(self, field) > 0, field, getattr(self, field), "must be above zero")
        not_negative = ("num_steps", "warmup_steps", "weight_decay", "regularization_weight", "swa_last")
        for field in (*not_negative, "evaluation_videos", "positive_weight", "mined_weight"):
            _require(getattr(self, field) >= 0, field, getattr(self, field), "must not be negative")
        for field in ("window_frames", "evaluate_every", "early_stopping", "checkpoint_seconds"):
            value = getattr(self, field)
            _require(value is None or value > 0, field, value, "must be above zero, or None")
        _require(0 < self.decay_rate <= 1, "decay_rate", self.decay_rate, "must lie in (0, 1]")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "must lie in [0, 1)")
        for field, hint in get_type_hints(TrainingConfig).items():
            if get_origin(hint) is Literal:
                value, allowed = getattr(self, field), get_args(hint)
                _require(value in allowed, field, value, f"choose one of {allowed}")
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", self.ema_decay, "must lie in (0, 1), or None"
        )
        per_step = self.accumulation * self.num_processes
        _require(
            self.batch_size % per_step == 0,
            "batch_size",
            self.batch_size,
            f"must be a multiple of accumulation x num_processes = {per_step}",
        )
        _require(
            self.windows_per_video == 1 or self.shuffle_buffer >= self.batch_size,
            "shuffle_buffer",
            self.shuffle_buffer,
            f"must be at least batch_size = {self.batch_size} where windows_per_video is above 1, or a batch holds the "
            "same video twice",
        )
        _require(
            not (self.sync_batchnorm and self.accumulation > 1),
            "sync_batchnorm",
            self.sync_batchnorm,
            f"shares statistics over processes, not over the {self.accumulation} micro-batches of accumulation, which "
            "run one after another: choose one of the two (more num_processes instead of accumulation)",
        )

    @property
    def examples_at_once(self) -> int:
        """Examples of a forward pass, on one process."""
        return self.batch_size // (self.accumulation * self.num_processes)


def computed_fields(config: TrainingConfig, has_batch_norm: Callable[[], bool]) -> dict[str, Any]:
    """The fields that decide what a run computes, by name.

    Without `sync_batchnorm`, batch norm takes its statistics from each micro-batch of each process: in a model that has
    it (`has_batch_norm`, asked only where it matters), how a batch is split is one of them.
    """
    ignored = set(EXECUTION_FIELDS)
    splits = config.accumulation * config.num_processes > 1 and not config.sync_batchnorm
    if splits and has_batch_norm():
        ignored -= set(SPLIT_FIELDS)
    return {field.name: getattr(config, field.name) for field in fields(config) if field.name not in ignored}
