"""One optimiser step: micro-batches, backward, clipping, the finite check, the update."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from yt8m_assets.data.dataset.batches import Batch
from yt8m_assets.device.compilation import Compiled
from yt8m_assets.device.memory import explain_memory, is_out_of_memory
from yt8m_assets.errors import NonFiniteError
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.graphs import StepGraphs
from yt8m_assets.training.loss import Objective
from yt8m_assets.training.optimizer import Optimizer, clip_gradients
from yt8m_assets.training.randomness import derive_seed, seed_defaults


class Stepper:
    """Runs optimiser steps on a device; nothing in `run` makes a GPU wait for the host.

    A step with a non-finite loss or gradient changes neither weights nor batch-norm statistics: on a GPU the update is
    blocked there, and all later ones, until `check` reads the verdict; on a CPU `run` checks at once.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        config: TrainingConfig,
        *,
        device: torch.device,
        seed: int,
        rank: int = 0,
        wrapped: nn.Module | None = None,
    ) -> None:
        self.objective, self.optimizer, self.config = objective, optimizer, config
        self.device, self.seed, self.rank = device, seed, rank
        self.model = objective.model
        self.module = wrapped or objective
        self.compiled = Compiled(self.module, enabled=config.compile, what="training")
        self.statistics = list(objective.buffers())
        self.penalised: dict[float, list[Tensor]] = {}
        for weights, factor in self.model.l2_terms():  # type: ignore[operator]
            if weights.requires_grad and factor:
                self.penalised.setdefault(factor * config.regularization_weight, []).append(weights)
        self.step = 0
        self.number = torch.zeros((), device=device)
        self.blocked = torch.zeros((), device=device)
        self.evidence = torch.zeros(2, device=device)
        self.norms: Tensor | None = None
        recorded = config.cuda_graphs and self.module is objective and not config.activation_checkpointing
        self.graphs = StepGraphs(device) if device.type == "cuda" and recorded else None
        self.recent: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=4 * config.log_every)

    def run(self, batch: Batch, step: int, learning_rate: float) -> Tensor:
        """Train on this rank's part of the batch of `step` (from 0); the mean cross entropy, a scalar on the device.

        Raises NonFiniteError naming step and videos, OutOfMemoryError naming the settings to lower.
        """
        self.recent.append((step, tuple(batch.video_ids)))
        counted, self.step = self.optimizer.num_steps, step
        try:
            seed = self.seed_step()
            self.optimizer.begin(learning_rate)
            self.number.fill_(step)
            return self.advance(batch) if self.graphs is None else self.graphs.run(self.advance, batch, seed)
        except Exception as error:
            self.optimizer.num_steps = counted
            if is_out_of_memory(error):
                what = f"at {self.config.examples_at_once} examples a forward pass"
                raise explain_memory(error, what, memory_remedies(self.config)) from error
            raise

    def seed_step(self) -> int:
        """Draw dropout as this step draws it, whatever came before; the seed."""
        seed = derive_seed(self.seed, "dropout", self.step, self.rank)
        seed_defaults(self.device, seed)
        return seed

    def advance(self, batch: Batch) -> Tensor:
        """Gradients, clipping, verdict and update of a prepared step: on a GPU the device's work alone."""
        before = [value.clone() for value in self.statistics]
        loss = self.differentiate(batch, before)
        gradients = [p.grad for p in self.optimizer.parameters.values() if p.grad is not None]
        norms, divisors = clip_gradients(gradients, self.config)
        self.judge(loss, norms, before)
        self.optimizer.apply(self.blocked, divisors)
        return loss

    def differentiate(self, batch: Batch, before: list[Tensor]) -> Tensor:
        """Loss and gradients of a step.

        Where the compiler fails, at any point, or memory beside recorded steps, the step is made anew without these.
        """
        while True:
            self.optimizer.zero_gradients()
            try:
                return self.accumulate(batch)
            except Exception as error:
                graphs = self.graphs
                if graphs is not None and graphs.recording:  # nothing has run, and the compiler may not be to blame
                    raise
                self.restore_statistics(before)
                if not (self.compiled.give_up(error) or (graphs is not None and graphs.give_up(error))):
                    raise
                self.seed_step()

    @torch.no_grad()
    def restore_statistics(self, before: list[Tensor]) -> None:
        """Take back what a failed step did to the batch-norm statistics."""
        for value, old in zip(self.statistics, before, strict=True):
            value.copy_(old)

    def accumulate(self, batch: Batch) -> Tensor:
        """Forward and backward over the micro-batches; gradients add up to those of the whole batch."""
        pieces = self.config.accumulation
        total_loss = torch.zeros((), device=self.device)
        for number, part in enumerate(self.split(batch), start=1):
            with contextlib.nullcontext() if number == pieces else no_sync(self.module):
                total, label_loss = self.forward(part, 1 / pieces)
                total.backward()
            total_loss += label_loss / pieces
        self.add_l2()
        return total_loss

    @torch.no_grad()
    def add_l2(self) -> None:
        """Add the gradient of the L2 terms, one pass; squares and sums through autograd would take six."""
        for factor, weights in self.penalised.items():
            for value in weights:
                if value.grad is None:  # the loss does not reach it
                    value.grad = torch.zeros_like(value)
            torch._foreach_add_([cast(Tensor, value.grad) for value in weights], weights, alpha=factor)

    def split(self, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of a batch, on the device."""
        size = len(batch) // self.config.accumulation
        for first in range(0, size * self.config.accumulation, size):
            yield batch.rows(slice(first, first + size)).to(self.device, non_blocking=True)

    def forward(
        self,
        part: Batch,
        share: float,
        run: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The objective under autocast, compiled where asked for and possible, or what is given as `run`."""
        tensors = (part.frames, part.valid, part.num_frames, part.labels, part.label_weights, part.frame_index)
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            return (run or self.compiled.attempt)(*tensors, share)

    @torch.no_grad()
    def judge(self, loss: Tensor, norms: Tensor, before: list[Tensor]) -> None:
        """Block the update if loss or gradients are not finite, and take back the batch-norm statistics."""
        bad = ~(loss.isfinite() & norms.isfinite().all())
        if self.device.type == "cpu":
            if bad:
                self.restore_statistics(before)
                self.raise_non_finite(self.step, float(loss), norms)
            self.recent.clear()
            return
        first = self.blocked == 0
        if self.norms is None or self.norms.shape != norms.shape:
            self.norms = torch.zeros_like(norms)
        self.evidence.copy_(torch.where(first, torch.stack([self.number, loss]), self.evidence))
        self.norms.copy_(torch.where(first, norms, self.norms))
        self.blocked.copy_(torch.maximum(self.blocked, bad.float()))
        for value, old in zip(self.statistics, before, strict=True):
            value.copy_(torch.where(self.blocked > 0, old, value))

    def check(self) -> None:
        """Wait for the device's verdict on all steps so far. Raises NonFiniteError for the first bad one."""
        if self.device.type != "cpu" and self.norms is not None and bool(self.blocked > 0):
            step, loss = self.evidence.tolist()
            self.raise_non_finite(int(step), loss, self.norms)
        self.recent.clear()

    def raise_non_finite(self, step: int, loss: float, norms: Tensor) -> None:
        """Name the step, the batch, its videos and what is not finite."""
        names = [name for name, p in self.optimizer.parameters.items() if p.grad is not None]
        wrong = [name for name, norm in zip(names, norms.tolist(), strict=True) if not torch.tensor(norm).isfinite()]
        videos = next((ids for number, ids in self.recent if number == step), ())
        what = f"loss is {loss}" if loss != loss or abs(loss) == float("inf") else f"loss is {loss:.6g}"
        gradients = f", the gradient of {', '.join(wrong[:3])} is not finite" if wrong else ""
        raise NonFiniteError(
            f"step {step + 1} (batch {step}, rank {self.rank}): {what}{gradients}; weights are unchanged; "
            f"videos of the batch: {', '.join(videos)}"
        )


def no_sync(module: nn.Module) -> Any:
    """Data parallelism without the exchange of gradients; nothing for a plain module."""
    return module.no_sync() if hasattr(module, "no_sync") else contextlib.nullcontext()  # type: ignore[operator]


def memory_remedies(config: TrainingConfig) -> list[str]:
    """The settings that make a step take less memory; only those that can still help."""
    remedies = []
    if config.examples_at_once > 1:
        if not config.sync_batchnorm:
            remedies.append(f"raise accumulation (now {config.accumulation})")
        remedies.append(f"lower batch_size (now {config.batch_size})")
    if not config.activation_checkpointing:
        remedies.append("set activation_checkpointing=True")
    return remedies
