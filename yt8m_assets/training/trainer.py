"""The training loop, for pre-training and fine-tuning alike.

Everything comes in: stepper, data, validator, checkpoints, tracker. The loop asks for each batch by a `yield`, so that
several trainings go on side by side, each example read once for all of them (passes.py). The state of a run is the
weights, the optimiser's moments, the averages, the data position, `TrainerState` and the validator's `Findings`; with
these a run continues bit for bit, because every random draw is a function of seed and step (randomness.py).
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from yt8m_assets.data.dataset.batches import Batch, BatchStream
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.progress import Task
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointWriter
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.model_files import load_weights
from yt8m_assets.training.optimizer import Schedule
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.validate import Findings, Validator

logger = logging.getLogger(__name__)
State = TypeVar("State")
Result = TypeVar("Result")
Training = Generator[BatchStream | None, tuple[Batch | None, float], Result]
"""A training that yields the stream whose next batch it wants, and is sent that and the seconds that making it took.

It is sent no batch where a stop is asked for, and yields no stream where it needs none any more.
"""


@dataclass(kw_only=True)
class TrainerState:
    """The part of a run's state that is no tensor and no finding of evaluations; JSON values only."""

    step: int = 0
    """Optimiser steps done in this stage."""
    loss_total: float = 0.0
    """Sum of the losses since the last logged point."""
    loss_count: int = 0
    """Steps in that sum."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged points: step, loss, learning_rate."""
    train_seconds: float = 0.0
    """Seconds spent training, over all sessions of the run; without evaluations."""


@dataclass(kw_only=True)
class Trainer:
    """One run: give it its parts, then `restore` (optional) and `run`; `save` writes its checkpoints."""

    stepper: Stepper
    schedule: Schedule
    source: BatchStream
    validator: Validator
    writer: CheckpointWriter
    team: Team
    stop: StopRequest
    tracked: TrackedRun
    task: Task
    state: TrainerState = field(default_factory=TrainerState)
    last_step: int | None = None
    """The step to end after, with the learning rates of the whole length; None: the last of these."""

    def __post_init__(self) -> None:
        self.config, self.averages = self.stepper.config, self.validator.averages
        self.num_steps = self.config.num_steps if self.last_step is None else self.last_step
        self.saved_at = time.monotonic()
        self.preempted = False
        self.pending: list[tuple[Arriving, dict[str, float]]] = []

    def restore(self, checkpoint: Checkpoint, allow_fallback: bool = False) -> None:
        """Continue from a checkpoint: weights, moments, averages, data position, counters.

        Raises CorruptArtifactError where the best weights are damaged; `allow_fallback` goes on without them.
        """
        values = dict(checkpoint.state)
        self.state = _from_values(TrainerState, values["loop"])
        self.validator.findings = _from_values(Findings, values["loop"])
        load_weights(self.stepper.model, checkpoint.groups["model"], f"checkpoint of step {self.state.step}")
        self.stepper.optimizer.load_state(checkpoint.groups["optimizer"], values["optimizer_steps"])
        for name, average in self.averages.items():
            average.load(checkpoint.groups[name], values[f"{name}_count"])
        self.source.load_state_dict(values["data"])
        self.validator.find_best(allow_fallback)

    def save_due(self) -> bool:
        """Whether a checkpoint is to be begun after this step.

        One is whole before the next begins, so two intervals are what a kill costs at most: each is half of the limit.
        """
        config = self.config
        limit = config.checkpoint_seconds if self.team.leads else None
        late = limit is not None and time.monotonic() - self.saved_at >= limit / 2
        return late or self.state.step % max(config.checkpoint_every // 2, 1) == 0

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
        if not self.team.leads:
            return
        self.state.loss_total, self.state.loss_count = float(total), self.meter.count
        optimizer, averages = self.stepper.optimizer, self.averages
        groups = {"model": dict(self.stepper.model.state_dict()), "optimizer": optimizer.state_tensors()}
        groups |= {name: average.average for name, average in averages.items()}
        loop = asdict(self.state) | asdict(self.validator.findings)
        state = {"loop": loop, "data": self.source.state_dict(), "optimizer_steps": optimizer.num_steps}
        state |= {f"{name}_count": average.count for name, average in averages.items()}
        state["run"] = self.tracked.state()
        self.writer.save(self.state.step, Checkpoint(state, groups))
        if wait:
            self.writer.wait()

    def run(self) -> "Training[None]":
        """Train to the last step, or to an early stop; yields `source` wherever the batch at its position is wanted.

        Raises TrainingPreempted after saving when asked to stop, NonFiniteError before a step that would spoil the
        weights.
        """
        config, state = self.config, self.state
        self.meter = LossMeter(self.stepper.device, state.loss_total, state.loss_count)
        self.watch = Stopwatch(state.train_seconds)
        self.stepper.model.train()
        finished = self.agree(self.validate(self.validator.begin), saves=False)
        self.watch.restart()
        while state.step < self.num_steps and not finished and not self.preempted:
            batch = yield from self.watch.wait_for(self.source)
            if batch is None:
                self.agree(finished, saves=False)
                continue
            loss = self.stepper.run(batch, state.step, self.schedule.learning_rate(state.step))
            state.step += 1
            self.after_step(loss)
            finished = self.agree(self.validate(self.validator.after_step), saves=self.save_due())
        if self.preempted:
            yield None  # all that train side by side begin to write before one waits for it
            self.writer.wait()
            raise TrainingPreempted(state.step)
        if state.step < self.num_steps:
            logger.info("stopped at step %d: no better score in %s evaluations", state.step, config.early_stopping)
        self.flush()
        self.stepper.check()
        self.writer.wait()

    def validate(self, ask: Callable[[int, float], bool]) -> bool:
        """Let the validator score the hold-out if it wants to; rates and training time are those of training alone."""
        before = self.validator.findings.evaluation_seconds
        finished = ask(self.state.step, self.watch.seconds)
        self.watch.skip(self.validator.findings.evaluation_seconds - before)
        return finished

    def agree(self, finished: bool, *, saves: bool) -> bool:
        """Settle with the other ranks whether training is finished or to be stopped; save where due, or then."""
        self.state.train_seconds = self.watch.seconds
        self.writer.check()
        self.preempted, finished, saves = self.team.any(self.stop.requested, finished, saves)
        if self.preempted or saves:
            self.save(wait=not self.preempted and self.config.checkpoint_every == 1)
        return finished

    def after_step(self, loss: torch.Tensor) -> None:
        """Count the step, update the average, and log where due."""
        config, state = self.config, self.state
        self.meter.add(loss)
        self.watch.steps += 1
        if "ema" in self.averages:
            self.averages["ema"].update()
        self.task.advance(1)
        if state.step % config.log_every and state.step != self.num_steps:
            return
        mean = self.meter.take()
        self.team.average(mean)
        values = {"step": state.step, "train/learning_rate": self.schedule.learning_rate(state.step - 1)}
        values |= self.watch.rates(config.batch_size)
        self.watch.restart()
        on_cpu = self.stepper.device.type == "cpu"
        if not on_cpu:
            self.flush()  # the previous point's, which has long arrived
        self.pending.append((Arriving(torch.stack([mean, self.stepper.blocked.to(mean.dtype)])), values))
        if on_cpu:
            self.flush()

    def flush(self) -> None:
        """Report the logged points whose values are on their way. Raises NonFiniteError if a step was bad."""
        for pending, values in self.pending:
            loss, blocked = pending.get().tolist()
            if blocked:
                self.stepper.check()
            step = int(values.pop("step"))
            rate = values["train/learning_rate"]
            self.state.history.append({"step": step, "loss": loss, "learning_rate": rate})
            self.tracked.log_metrics({"train/loss": loss, **values}, step)
            self.task.update(loss=loss, **{"examples/s": round(values["train/examples_per_second"])})
        self.pending.clear()


class LossMeter:
    """Mean loss since the last point, summed on the device; read one point late on a GPU, so nothing waits."""

    def __init__(self, device: torch.device, total: float = 0.0, count: int = 0) -> None:
        self.total = torch.tensor(total, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        self.count = count

    def add(self, loss: Tensor) -> None:
        """Add one step's loss, a scalar on the device."""
        self.total += loss
        self.count += 1

    def take(self) -> Tensor:
        """The mean since the last call, a scalar on the device."""
        mean = self.total / max(self.count, 1)
        self.total = torch.zeros_like(self.total)
        self.count = 0
        return mean


class Stopwatch:
    """Seconds of training, and rates since the last point: examples a second, seconds a step, share spent waiting."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self.began = time.perf_counter() - seconds_before
        self.restart()

    @property
    def seconds(self) -> float:
        """Seconds spent training, those of earlier sessions included."""
        return time.perf_counter() - self.began

    def restart(self) -> None:
        """Begin a new interval."""
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def skip(self, seconds: float) -> None:
        """Leave out what just passed: it was no training."""
        self.began += seconds
        self.started += seconds

    def wait_for(self, source: BatchStream) -> "Training[Batch | None]":
        """The next batch, None where a stop is asked for; making it counts as waiting for data, all else not at all."""
        asked = time.perf_counter()
        batch, seconds = yield source
        self.skip(time.perf_counter() - asked - seconds)
        self.waited += seconds
        return batch

    def rates(self, batch_size: int) -> dict[str, float]:
        """The live metrics of the interval that ends now."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        steps = max(self.steps, 1)
        return {
            "train/examples_per_second": steps * batch_size / elapsed,
            "train/step_seconds": elapsed / steps,
            "train/data_wait_share": min(self.waited / elapsed, 1.0),
        }


def _from_values(kind: type[State], values: Mapping[str, Any]) -> State:
    return kind(**{item.name: values[item.name] for item in fields(kind) if item.name in values})  # type: ignore[arg-type]
