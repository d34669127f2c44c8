"""One training run with everything resolved: plain values that can be sent to another process, and how to run them."""

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from models.base import FrameModel
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import Task
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.training.averages import WeightAverage
from yt8m_assets.training.checkpoint import CheckpointStore, CheckpointWriter
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.data import TrainingData
from yt8m_assets.training.distributed import Team, run_on_ranks
from yt8m_assets.training.evaluate import Evaluation, HoldoutEvaluation, VideoEvaluation
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest, TrainingPreempted
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.model_files import (
    OPTIMIZER,
    TRAINING,
    WEIGHTS,
    ModelSpec,
    build_with_weights,
    read_json,
    read_tensors,
    write_model,
)
from yt8m_assets.training.optimizer import Optimizer, Schedule
from yt8m_assets.training.passes import run_pass
from yt8m_assets.training.randomness import derive_seed
from yt8m_assets.training.recompute import recompute_activations
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.trainer import Trainer, Training
from yt8m_assets.training.validate import Judge, Scores, Validator, scores_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What one run trains, on what, from where."""

    name: str
    """Name of the model in messages."""
    finetunes: bool
    """Whether this is fine-tuning on rated segments, or pre-training that it goes on from."""
    spec: ModelSpec
    """The model."""
    config: TrainingConfig
    """Length, objective, optimiser, cadence."""
    data: TrainingData
    """What is read."""
    seed: int
    """Seed of weights and dropout, different for every recipe seed, model and stage; of the data's draws: `data`."""
    checkpoints: CheckpointStore
    """Where this run keeps its checkpoints."""
    last_step: int | None = None
    """The step to end after, where that is not the last of the configuration."""
    initial_path: Path | None = None
    """Folder of the model to start from; None: new weights."""
    allow_fallback: bool = False
    """Continue from an older checkpoint when the newest is damaged."""
    judge: Judge | None = None
    """Who may end the run after an evaluation, by an error; on one process only."""


def run_job(
    job: TrainingJob, output_path: Path, *, tracked: TrackedRun, task: Task, stop: StopRequest
) -> Training[dict[str, Any]]:
    """Train, on as many processes as the job says; write the model's files to `output_path`; a JSON summary of the run.

    Continues from the job's newest checkpoint. Raises what `Trainer.run` and `run_on_ranks` raise.
    """
    if job.config.num_processes == 1:
        return (yield from train(job, output_path, team=Team(), tracked=tracked, task=task, stop=stop))
    work = partial(run_alone, job, output_path)
    saved_step = job.checkpoints.newest_step
    return run_on_ranks(work, job.config.num_processes, tracked=tracked, task=task, saved_step=saved_step)


def run_alone(
    job: TrainingJob, output_path: Path, *, team: Team, tracked: TrackedRun, task: Task, stop: StopRequest
) -> dict[str, Any]:
    """`run_job` of nothing else in this process, one of a team."""
    training = train(job, output_path, team=team, tracked=tracked, task=task, stop=stop)
    ((_, outcome),) = run_pass({job.name: training}, stop, team.device, job.config)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def train(
    job: TrainingJob, output_path: Path, *, team: Team, tracked: TrackedRun, task: Task, stop: StopRequest
) -> Training[dict[str, Any]]:
    """`run_job` in this process, one of a team; only rank 0 writes files and has a summary."""
    trainer = prepare_trainer(job, team, tracked, task, stop)
    with contextlib.closing(trainer.writer):
        checkpoint = job.checkpoints.latest(job.allow_fallback)
        if checkpoint is not None:
            trainer.restore(checkpoint, job.allow_fallback)
        resumed_from = trainer.state.step
        if resumed_from:
            task.resume(resumed_from)
        yield from trainer.run()
        yield None
        return publish(job, trainer, output_path) | {"resumed_from_step": resumed_from} if team.leads else {}


def prepare_trainer(job: TrainingJob, team: Team, tracked: TrackedRun, task: Task, stop: StopRequest) -> Trainer:
    """Build the parts of a run, as it stands before its first step."""
    config, device = job.config, team.device
    if not job.finetunes and config.swa_last:
        raise ConfigError(f"pretraining.swa_last = {config.swa_last}: averages evaluated points: a fine-tuning option")
    before, earlier = job.initial_path, {"examples": 0, "optimizer_steps": 0}
    if before is None:
        model = cast(FrameModel, job.spec.build(derive_seed(job.seed, "weights")).to(device))
    else:
        model = cast(FrameModel, build_with_weights(job.spec, before / WEIGHTS, device, before / WEIGHTS))
        earlier = read_json(before / TRAINING)
    if config.activation_checkpointing:
        recompute_activations(model, compiled=config.compile)
    if config.sync_batchnorm and team.size > 1:
        from models.layers import synchronize_batch_norm

        synchronize_batch_norm(model)
    optimizer = Optimizer(dict(model.named_parameters()), config)
    if before is not None and config.continue_schedule and (before / OPTIMIZER).exists():
        optimizer.load_state(read_tensors(before / OPTIMIZER), earlier["optimizer_steps"])
    objective = Objective(model, config)
    options: Any = {"device": device, "seed": job.seed, "rank": team.rank, "wrapped": team.wrap(objective)}
    stepper = Stepper(objective, optimizer, config, **options)
    averages = {"ema": WeightAverage(model, config.ema_decay)} if config.ema_decay is not None else {}
    averages |= {"swa": WeightAverage(model, None)} if config.swa_last else {}
    source, writer = job.data.stream(config, model, team), CheckpointWriter(job.checkpoints)
    parts: Any = {"stepper": stepper, "source": source, "writer": writer}
    people: Any = {"stop": stop, "tracked": tracked, "task": task}
    evaluate = holdout_evaluation(job, device) if team.leads else None
    validator = Validator(
        evaluate=evaluate, averages=averages, hands_on=not job.finetunes, judge=job.judge, **parts, **people
    )
    schedule = Schedule(config=config, first_examples=earlier["examples"] if config.continue_schedule else 0)
    return Trainer(schedule=schedule, validator=validator, team=team, last_step=job.last_step, **parts, **people)


def holdout_evaluation(job: TrainingJob, device: torch.device) -> Evaluation | None:
    """Evaluation on the held-out rated segments, or in pre-training on held-out videos; None where there are none."""
    config, data = job.config, job.data
    if job.finetunes and data.holdout_shards:
        return HoldoutEvaluation(data.segments(data.holdout_shards), device, config.precision)
    if not data.holdout_shards:
        if not job.finetunes:
            logger.info("%s: no held-out video with video labels to score pre-training on", job.name)
        return None
    return VideoEvaluation(data.holdout_videos(config), config.evaluation_videos, device, config.precision)


def publish(job: TrainingJob, trainer: Trainer, output_path: Path) -> dict[str, Any]:
    """Compare weights, write the model's files, and return the summary (rank 0).

    Raises TrainingPreempted after saving when asked to stop: the rerun begins with this comparison.
    """
    validator, step = trainer.validator, trainer.state.step
    try:
        candidates = validator.compare(step)
    except EvaluationInterrupted as interrupted:
        trainer.save(alone=True, wait=True)
        raise TrainingPreempted(step) from interrupted
    winner = validator.pick(candidates)
    validator.select(winner, step)
    stepper = trainer.stepper
    optimizer = None if job.finetunes else stepper.optimizer.state_tensors()
    training = describe_training(trainer, winner, candidates)
    write_model(output_path, job.spec, stepper.model.state_dict(), training, optimizer)
    return summarise(trainer, winner, candidates)


def describe_training(trainer: Trainer, winner: str, candidates: Mapping[str, Scores | None]) -> dict[str, Any]:
    """The content of `training.json`: the same run gives the same values, so no times and no rates."""
    validator, step = trainer.validator, trainer.state.step
    findings = validator.findings
    goes_on_from = int(findings.best["step"]) if winner == "best" and validator.hands_on and findings.best else step
    return {
        "steps": step,
        "examples": trainer.schedule.first_examples + goes_on_from * trainer.config.batch_size,
        "optimizer_steps": trainer.stepper.optimizer.num_steps,
        "weights": winner,
        "candidates": dict(candidates),
        "start": findings.start,
        "best": findings.best,
        "evaluations": [{"step": entry["step"], **scores_of(entry)} for entry in findings.evaluations],
    }


def summarise(trainer: Trainer, winner: str, candidates: Mapping[str, Scores | None]) -> dict[str, Any]:
    """What people want to know of the run, as JSON values.

    The scores of what is published stand under their names (`map`; in pre-training `gap_at_20`, ...).
    """
    state, validator, findings = trainer.state, trainer.validator, trainer.validator.findings
    headline = validator.evaluate.headline if validator.evaluate else None
    summary = {
        "steps": state.step,
        "parameters": num_parameters(trainer.stepper.model),
        "seconds": round(state.train_seconds + findings.evaluation_seconds, 3),
        "examples_per_second": round(state.step * trainer.config.batch_size / max(state.train_seconds, 1e-9), 2),
        "evaluation_seconds": round(findings.evaluation_seconds, 3),
        "evaluation_share": round(findings.evaluation_seconds / max(state.train_seconds, 1e-9), 3),
        "weights": winner,
        "headline": headline,
        "candidates": {name: (scores or {}).get(str(headline)) for name, scores in candidates.items()},
        "scores": candidates[winner] or {},
        "best_step": int(findings.best["step"]) if findings.best else None,
        "start": findings.start,
        "history": state.history,
        "evaluations": findings.evaluations,
    }
    return json.loads(json.dumps(summary))


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
