"""What a training run measures about itself, without making the device wait."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from yt8m_assets.data.dataset.batches import Batch


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


class PendingValues:
    """Numbers on their way from the device to the host: asking for them late costs no wait."""

    def __init__(self, values: Tensor) -> None:
        self.event = None
        if values.device.type == "cuda":
            self.host = torch.empty_like(values, device="cpu", pin_memory=True)
            self.host.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.host = values

    def get(self) -> list[float]:
        """The numbers; waits for the copy if it is not there yet."""
        if self.event is not None:
            self.event.synchronize()
        return self.host.tolist()


@dataclass
class Stopwatch:
    """Rates since the last point: examples a second, seconds a step, share of the time spent waiting for data."""

    started: float = 0.0
    waited: float = 0.0
    steps: int = 0

    def restart(self) -> None:
        """Begin a new interval."""
        self.started, self.waited, self.steps = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it takes counts as waiting for data."""
        started = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - started
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
