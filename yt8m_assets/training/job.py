"""One training run with everything resolved: plain values that can be sent to another process, and how to run them."""

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yt8m_assets.data.config import DataConfig
from yt8m_assets.data.dataset.batches import BatchStream
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.errors import ConfigError
from yt8m_assets.stages.lineage import Node
from yt8m_assets.stages.locating import index_cache
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.training.artifacts import OPTIMIZER, TRAINING, WEIGHTS, ModelSpec, read_json, write_model
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.evaluate import Evaluation, HoldoutEvaluation
from yt8m_assets.training.evaluate_videos import VideoEvaluation
from yt8m_assets.training.inputs import HeldOut, holdout_videos, load_segment_table, pretraining_source, segment_source
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.loop import TrainingLoop
from yt8m_assets.training.losses import Objective
from yt8m_assets.training.optimizer import Optimizer
from yt8m_assets.training.randomness import derive_seed, isolated_randomness
from yt8m_assets.training.recompute import recompute_activations
from yt8m_assets.training.result import compare_weights, describe_training, pick, select_weights, summarise
from yt8m_assets.training.schedule import Schedule
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.team import Team
from yt8m_assets.training.tensors import load_weights, read_tensors

logger = logging.getLogger(__name__)


def checkpoint_key(node: Node) -> str:
    """Key below which a node's training keeps its checkpoints."""
    return f"checkpoints/{node.key}"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What one run trains, on what, from where."""

    asset: str
    """pretrained_model or finetuned_model."""
    model_key: str
    """Partition key."""
    spec: ModelSpec
    """The model."""
    config: TrainingConfig
    """Length, objective, optimiser, cadence."""
    data: DataConfig
    """How to read: sizes, budget, workers."""
    train_uris: tuple[str, ...]
    """Shards to train on."""
    holdout_uris: tuple[str, ...] = ()
    """Shards to evaluate on: rated segments in fine-tuning, video labels in pre-training."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """Videos not to train on."""
    shards_digest: str
    """Digest of the shards' artifact."""
    seed: int
    """Seed of the recipe."""
    initial_path: Path | None = None
    """Folder of the model artifact to start from; None: new weights."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint must have in common with this run to be continued."""
    allow_fallback: bool = False
    """Continue from an older checkpoint when the newest is damaged."""

    @property
    def finetunes(self) -> bool:
        """Whether this is fine-tuning on rated segments."""
        return self.asset == "finetuned_model"

    @property
    def run_seed(self) -> int:
        """Seed of this run's draws, different for every recipe seed, model and stage."""
        return derive_seed(self.seed, self.model_key, self.asset)

    def checkpoints(self, store: ArtifactStore) -> CheckpointStore:
        """Where this run keeps its checkpoints."""
        return CheckpointStore(store, checkpoint_key(Node(self.asset, self.model_key)), self.identity)

    def reading(self, store: ArtifactStore) -> Reading:
        """How the shards are read on this machine."""
        return self.data.reading(index_cache(store))

    def source(self, store: ArtifactStore, team: Team, pin: bool) -> BatchStream:
        """This rank's stream of batches. Raises DataError naming the videos when a held-out one is among them."""
        make = segment_source if self.finetunes else pretraining_source
        shards = self.train_uris, self.shards_digest
        return make(self.reading(store), self.data, self.config, *shards, self.run_seed, team, pin, self.held_out)


def training_device(rank: int = 0) -> torch.device:
    """The GPU of this rank, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def run_job(
    job: TrainingJob,
    store: ArtifactStore,
    output_path: Path,
    *,
    tracked: Any = None,
    task: Any = None,
    stop: StopRequest | None = None,
    team: Team | None = None,
) -> dict[str, Any]:
    """Train, write the model artifact's files to `output_path` (rank 0) and return a JSON summary of the run.

    Continues from this run's newest checkpoint. Raises what `TrainingLoop.run` raises.
    """
    team = team or Team()
    device = training_device(team.rank)
    with isolated_randomness(device, job.run_seed), deterministic_algorithms(job.config.deterministic):
        loop, resumed_from = prepare_loop(job, store, device, team)
        loop.tracked, loop.task, loop.stop = tracked, task, stop or StopRequest()
        if tracked is not None:
            loop.state.run_id = tracked.run_id
        if task is not None and resumed_from:
            task.resume(resumed_from)
        with contextlib.closing(loop):
            loop.run()
            return publish_run(loop, job, output_path) | {"resumed_from_step": resumed_from} if team.leads else {}


def publish_run(loop: TrainingLoop, job: TrainingJob, output_path: Path) -> dict[str, Any]:
    """Compare weights, write the model artifact's files, and return the summary (rank 0)."""
    candidates = compare_weights(loop)
    winner = pick(loop, candidates)
    select_weights(loop, winner)
    optimizer = None if job.finetunes else loop.stepper.optimizer.state_tensors()
    write_model(output_path, job.spec, loop.model.state_dict(), describe_training(loop, winner, candidates), optimizer)
    return summarise(loop, winner, candidates)


def prepare_loop(job: TrainingJob, store: ArtifactStore, device: torch.device, team: Team) -> tuple[TrainingLoop, int]:
    """Build the run's parts and restore its newest checkpoint; the loop, and the step it continues from."""
    config = job.config
    if not job.finetunes and config.swa_last:
        raise ConfigError(f"pretraining.swa_last = {config.swa_last}: averages evaluated points: a fine-tuning option")
    model = job.spec.build(derive_seed(job.run_seed, "weights"))
    earlier = start_from(job, model)
    model.to(device)
    if config.activation_checkpointing:
        recompute_activations(model, compiled=config.compile)
    if config.sync_batchnorm and team.size > 1:
        from models.layers import synchronize_batch_norm

        synchronize_batch_norm(model)
    optimizer = Optimizer(dict(model.named_parameters()), config)
    if job.initial_path is not None and config.continue_schedule and (job.initial_path / OPTIMIZER).exists():
        optimizer.load_state(read_tensors(job.initial_path / OPTIMIZER), earlier["optimizer_steps"])
    objective = Objective(model, config)
    stepper = Stepper(
        objective,
        optimizer,
        config,
        device=device,
        seed=job.run_seed,
        rank=team.rank,
        wrapped=team.wrap(objective, device),
    )
    loop = TrainingLoop(
        config=config,
        model=model,
        stepper=stepper,
        schedule=Schedule(config=config, first_examples=earlier["examples"] if config.continue_schedule else 0),
        source=job.source(store, team, pin=device.type == "cuda"),
        device=device,
        checkpoints=job.checkpoints(store),
        evaluate=holdout_evaluation(job, store, device) if team.leads else None,
        hands_on=not job.finetunes,
        team=team,
    )
    assert loop.checkpoints is not None
    checkpoint = loop.checkpoints.latest(job.allow_fallback)
    if checkpoint is None:
        return loop, 0
    loop.restore(checkpoint, job.allow_fallback)
    return loop, loop.state.step


def start_from(job: TrainingJob, model: nn.Module) -> dict[str, Any]:
    """Load the weights of the earlier stage; its counts of examples and optimiser steps, zeros where there is none."""
    if job.initial_path is None:
        return {"examples": 0, "optimizer_steps": 0}
    load_weights(model, read_tensors(job.initial_path / WEIGHTS), job.initial_path / WEIGHTS)
    return read_json(job.initial_path / TRAINING)


def holdout_evaluation(job: TrainingJob, store: ArtifactStore, device: torch.device) -> Evaluation | None:
    """Evaluation on the held-out rated segments, or in pre-training on held-out videos; None where there are none."""
    config = job.config
    if job.finetunes:
        table = load_segment_table(job.reading(store), job.data, job.holdout_uris, job.shards_digest)
        return HoldoutEvaluation(table, device, config.precision)
    if not job.holdout_uris:
        logger.info("%s: no held-out video with video labels to score pre-training on", job.model_key)
        return None
    videos = holdout_videos(job.reading(store), job.data, config, job.holdout_uris, job.held_out)
    return VideoEvaluation(videos, config.evaluation_videos, device, config.precision)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Ask torch for deterministic algorithms inside the block, if enabled."""
    if not enabled:  # even asking torch for the default imports its compiler, which takes seconds
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's matrix products would be refused
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
