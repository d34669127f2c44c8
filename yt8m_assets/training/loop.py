"""The training loop, for pre-training and fine-tuning alike.

Everything comes in: configuration, model, data, optimiser, checkpoints, evaluation, tracker. The state of a run is the
weights, the optimiser's moments, the averages, the data position and `LoopState`; with these a run continues bit for
bit, because every random draw is a function of seed and step (randomness.py).
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.training.averaging import WeightAverage
from yt8m_assets.training.behind import CheckpointWriter
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointStore
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.evaluate import Evaluation
from yt8m_assets.training.holdout import evaluate_first, evaluate_if_due
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.meter import LossMeter, PendingValues, Stopwatch
from yt8m_assets.training.schedule import Schedule
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.team import Team
from yt8m_assets.training.tensors import load_weights

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """An endless stream of batches; its state after a batch is where iteration continues (data.batches)."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class LoopState:
    """The part of a run's state that is no tensor; JSON values only."""

    step: int = 0
    """Optimiser steps done in this stage."""
    loss_total: float = 0.0
    """Sum of the losses since the last logged point."""
    loss_count: int = 0
    """Steps in that sum."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged points: step, loss, learning_rate."""
    evaluations: list[dict[str, float]] = field(default_factory=list)
    """Hold-out evaluations: step, scores by name, seconds."""
    unevaluated: bool = False
    """Whether the evaluation of this step was interrupted, and is to be made before the next step."""
    best: dict[str, float] | None = None
    """Step and scores of the best evaluation."""
    start: dict[str, float] | None = None
    """Scores of the weights that training started from."""
    train_seconds: float = 0.0
    """Seconds spent training, over all sessions of the run; without evaluations."""
    evaluation_seconds: float = 0.0
    """Seconds spent on evaluations, the first and interrupted ones included."""
    run_id: str | None = None
    """The tracker's run, continued after an interruption."""


@dataclass(kw_only=True)
class TrainingLoop:
    """One run: give it its parts, then `restore` (optional) and `run`.

    `hands_on`: a later stage goes on from what is published, so the best weights keep their optimiser state.
    """

    config: TrainingConfig
    model: nn.Module
    stepper: Stepper
    schedule: Schedule
    source: BatchSource
    device: torch.device
    tracked: TrackedRun | None = None
    task: Any = None
    checkpoints: CheckpointStore | None = None
    evaluate: Evaluation | None = None
    hands_on: bool = False
    stop: StopRequest = field(default_factory=StopRequest)
    team: Team = field(default_factory=Team)
    state: LoopState = field(default_factory=LoopState)

    def __post_init__(self) -> None:
        decay = self.config.ema_decay
        self.ema = WeightAverage(self.model, decay) if decay is not None else None
        self.swa = WeightAverage(self.model, None) if self.config.swa_last else None
        self.writer = CheckpointWriter(self.checkpoints) if self.checkpoints else None
        self.saved_at = time.monotonic()
        self.pending: list[tuple[PendingValues, dict[str, float]]] = []

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluated weights are kept to be published."""
        return not self.hands_on if self.config.keep_best is None else self.config.keep_best

    def restore(self, checkpoint: Checkpoint, allow_fallback: bool = False) -> None:
        """Continue from a checkpoint: weights, moments, averages, data position, counters.

        Raises CorruptArtifactError where the best weights are damaged; `allow_fallback` goes on without them.
        """
        values = dict(checkpoint.state)
        load_weights(self.model, checkpoint.groups["model"], f"checkpoint of step {values['loop']['step']}")
        self.stepper.optimizer.load_state(checkpoint.groups["optimizer"], values["optimizer_steps"])
        for name, average in (("ema", self.ema), ("swa", self.swa)):
            if average is not None:
                average.load(checkpoint.groups[name], values[f"{name}_count"])
        self.source.load_state_dict(values["data"])
        self.state = LoopState(**values["loop"])
        best = self.checkpoints.best(allow_fallback) if self.checkpoints else None
        if best is not None:  # may be of a later step: evaluated before the interruption, after this checkpoint
            self.state.best = best.state["best"]
        elif self.keeps_best and self.state.best is not None:
            logger.warning(
                "the best weights, of step %s, are lost: the present ones are scored", self.state.best["step"]
            )
            self.state.best, self.state.unevaluated = None, True

    def save_due(self) -> bool:
        """Whether a checkpoint is to be begun after this step.

        One is whole before the next begins, so two intervals are what a kill costs at most: each is half of the limit.
        """
        config = self.config
        by_time = config.checkpoint_seconds is not None and self.team.leads
        if by_time and time.monotonic() - self.saved_at >= config.checkpoint_seconds / 2:  # type: ignore[operator]
            return True
        return self.state.step % max(config.checkpoint_every // 2, 1) == 0

    def save(self, *, alone: bool = False, wait: bool = False) -> None:
        """Begin a checkpoint of this moment (rank 0), and `wait` until it is written; refuses after a non-finite step.

        All ranks call it together; `alone`: rank 0 by itself, after the last step.
        """
        self.saved_at = time.monotonic()
        self.flush()
        self.stepper.check()
        total = self.meter.total.clone()
        if not alone:
            self.team.average(total)
        if self.writer is None or not self.team.leads:
            return
        self.state.loss_total, self.state.loss_count = float(total), self.meter.count
        optimizer = self.stepper.optimizer
        groups = {"model": dict(self.model.state_dict()), "optimizer": optimizer.state_tensors()}
        state = {"loop": asdict(self.state), "data": self.source.state_dict(), "optimizer_steps": optimizer.num_steps}
        for name, average in (("ema", self.ema), ("swa", self.swa)):
            if average is not None:
                groups[name] = average.average
                state[f"{name}_count"] = average.count
        self.writer.save(self.state.step, Checkpoint(state, groups))
        if wait:
            self.writer.wait()

    def run(self) -> LoopState:
        """Train to the last step, or to an early stop.

        Raises TrainingPreempted after saving when asked to stop, NonFiniteError before a step that would spoil the
        weights.
        """
        config, state = self.config, self.state
        self.meter = LossMeter(self.device, state.loss_total, state.loss_count)
        self.watch = Stopwatch()
        self.session_start, self.seconds_before = time.perf_counter(), state.train_seconds
        self.model.train()
        finished = self.agree(evaluate_first(self), saves=False)
        with contextlib.closing(iter(self.source)) as batches:  # type: ignore[type-var]
            self.watch.restart()
            while state.step < config.num_steps and not finished:
                batch = self.watch.wait_for(batches)
                loss = self.stepper.run(batch, state.step, self.schedule.learning_rate(state.step))
                state.step += 1
                self.after_step(loss)
                finished = self.agree(evaluate_if_due(self), saves=self.save_due())
        if state.step < config.num_steps:
            logger.info("stopped at step %d: no better score in %s evaluations", state.step, config.early_stopping)
        self.flush()
        self.stepper.check()
        if self.writer is not None:
            self.writer.wait()
        return state

    def close(self) -> None:
        """Let the checkpoint that is being written come to its end."""
        if self.writer is not None:
            self.writer.close()

    def train_seconds(self) -> float:
        """Seconds spent training so far."""
        return self.seconds_before + time.perf_counter() - self.session_start

    def agree(self, finished: bool, *, saves: bool) -> bool:
        """Settle with the other ranks whether training is finished, and save where due or asked to stop.

        Raises TrainingPreempted after saving when any rank was asked to stop.
        """
        self.state.train_seconds = self.train_seconds()
        if self.writer is not None:
            self.writer.check()
        preempted, finished, saves = self.team.any(self.stop.requested, finished, saves)
        if preempted or saves:
            self.save(wait=preempted or self.config.checkpoint_every == 1)
        if preempted:
            raise TrainingPreempted(self.state.step)
        return finished

    def after_step(self, loss: torch.Tensor) -> None:
        """Count the step, update the average, and log where due."""
        config, state = self.config, self.state
        self.meter.add(loss)
        self.watch.steps += 1
        if self.ema is not None:
            self.ema.update()
        if self.task is not None:
            self.task.advance(1)
        if state.step % config.log_every and state.step != config.num_steps:
            return
        mean = self.meter.take()
        self.team.average(mean)
        values = {"step": state.step, "train/learning_rate": self.schedule.learning_rate(state.step - 1)}
        values |= self.watch.rates(config.batch_size)
        self.watch.restart()
        if self.device.type != "cpu":
            self.flush()  # the previous point's, which has long arrived
        self.pending.append((PendingValues(torch.stack([mean, self.stepper.blocked.to(mean.dtype)])), values))
        if self.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Report the logged points whose values are on their way. Raises NonFiniteError if a step was bad."""
        for pending, values in self.pending:
            loss, blocked = pending.get()
            if blocked:
                self.stepper.check()
            step = int(values.pop("step"))
            rate = values["train/learning_rate"]
            self.state.history.append({"step": step, "loss": loss, "learning_rate": rate})
            if self.tracked is not None:
                self.tracked.log_metrics({"train/loss": loss, **values}, step)
            if self.task is not None:
                self.task.update(loss=loss, **{"examples/s": round(values["train/examples_per_second"])})
        self.pending.clear()
