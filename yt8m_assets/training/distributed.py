"""Data-parallel training over several processes of this machine, started by torchrun's launcher.

The ranks do what a single process does; what rank 0 tracks and shows is relayed to this process, which holds the
tracker, the progress display and the publication.
"""

import inspect
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from yt8m_assets.errors import WorkerCrashError, Yt8mError
from yt8m_assets.progress import Counter, Task
from yt8m_assets.tracking import NullRun, TrackedRun
from yt8m_assets.tracking.record import Record
from yt8m_assets.training.interruption import PREEMPTED_EXIT_CODE, TrainingPreempted, stop_on_signals

MONITOR_SECONDS = 0.1
"""How often the launcher looks after the ranks."""
PATIENCE = timedelta(hours=12)
"""How long ranks wait for rank 0 to evaluate and compare weights; a rank that died is noticed at once all the same."""


@dataclass(frozen=True)
class Team:
    """This process among the ranks, as little of them as training needs; a team of one does nothing.

    Rank 0 alone tracks, evaluates, saves and publishes.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    """Process group on the CPU for decisions, so that agreeing never makes a GPU wait."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The GPU of this rank, or the CPU where there is none."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.rank % torch.cuda.device_count())
        return torch.device("cpu")

    def average(self, value: Tensor) -> None:
        """Average a tensor over the ranks in place, on its device."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
            value /= self.size

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank raised it; all ranks call this at the same step."""
        if self.size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self.control)
        return tuple(bool(vote) for vote in votes)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over ranks."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        wrapper: Any = nn.parallel.DistributedDataParallel
        # Statistics stay each rank's own between steps; torch is renaming the option that says so.
        known = inspect.signature(wrapper).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return wrapper(module, device_ids=devices, **{option: False})


class Relay:
    """Stands for an object of the process that started the ranks: a method called here is called there."""

    def __init__(self, events: Any, name: str) -> None:
        self.events, self.name = events, name

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda *arguments, **options: self.events.put((self.name, method, arguments, options))


class RelayRun(TrackedRun):
    """A run whose metrics go to the one of that process, too; checkpoints are written here, and hold the record."""

    def __init__(self, events: Any, state: Mapping[str, Any]) -> None:
        super().__init__(Record.from_json(state))
        self.relay = Relay(events, "tracked")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record and send one point per metric."""
        super().log_metrics(metrics, step)
        self.relay.log_metrics(dict(metrics), step)

    def log_checkpoint(self, name: str, step: int, metrics: Mapping[str, float], *, published: bool = False) -> None:
        """Record and send a checkpoint."""
        super().log_checkpoint(name, step, metrics, published=published)
        self.relay.log_checkpoint(name, step, dict(metrics), published=published)


@contextmanager
def relayed(events: Any, tracked: TrackedRun, task: Task) -> Iterator[list[BaseException]]:
    """Hand on what the ranks call while the block runs; the errors that they send."""
    targets: dict[str, Any] = {"tracked": tracked, "task": task}
    errors: list[BaseException] = []

    def hand_on() -> None:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                errors.append(event)
            else:
                name, method, arguments, options = event
                getattr(targets[name], method)(*arguments, **options)

    thread = threading.Thread(target=hand_on, name="rank-relay", daemon=True)
    thread.start()
    try:
        yield errors
    finally:
        events.put(None)
        thread.join()


@contextmanager
def no_alarm_for_preemption() -> Iterator[None]:
    """Keep the launcher, inside the block, from logging a traceback of a rank that did as it was told."""
    log = logging.getLogger("torch.distributed.elastic.multiprocessing.api")

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(f"failed (exitcode: {PREEMPTED_EXIT_CODE})")

    log.addFilter(is_news)
    try:
        yield
    finally:
        log.removeFilter(is_news)


def run_on_ranks(
    work: Callable[..., dict[str, Any]], size: int, *, tracked: TrackedRun, task: Task, saved_step: Callable[[], int]
) -> dict[str, Any]:
    """`work(team=, tracked=, task=, stop=)` on `size` ranks; the result of rank 0.

    Raises the ranks' own error where it is one of ours; TrainingPreempted when this process or a rank was told to end;
    WorkerCrashError naming the rank and its exit code or signal when a rank died: the other ranks are ended at once.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
        start_method="spawn",
    )
    events = torch.multiprocessing.get_context("spawn").Queue()
    try:
        with relayed(events, tracked, task) as errors, no_alarm_for_preemption():
            results = elastic_launch(config, _run_rank)(work, events, tracked.state(), torch.get_num_threads())
    except SignalException as error:
        raise TrainingPreempted(saved_step()) from error
    except ChildFailedError as error:
        own = [found for found in errors if isinstance(found, Yt8mError)]
        if own:
            raise own[0] from error
        rank, failure = error.get_first_failure()
        if failure.exitcode == PREEMPTED_EXIT_CODE:
            raise TrainingPreempted(saved_step()) from error
        cause = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        reason = f": {errors[0]!r}" if errors and failure.exitcode > 0 else ""  # others just lost their connection
        raise WorkerCrashError(
            f"rank {rank} of {size} died with {cause}{reason}; run again to continue from the last checkpoint"
        ) from error
    return results[0]


def _run_rank(
    work: Callable[..., dict[str, Any]], events: Any, run_state: Mapping[str, Any], num_threads: int
) -> dict[str, Any]:
    """What each rank's process runs; the launcher says by environment which rank it is."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = Team(rank).device
    torch.set_num_threads(max(num_threads // size, 1))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tracked: Any = RelayRun(events, run_state) if rank == 0 else NullRun()
    task: Any = Relay(events, "task") if rank == 0 else Counter()
    try:
        with stop_on_signals(second_interrupts=False) as stop:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            control = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            result = work(team=Team(rank, size, control), tracked=tracked, task=task, stop=stop)
            torch.distributed.barrier(group=control)  # rank 0 still compares weights when the others are through
    except TrainingPreempted:
        torch.distributed.barrier(group=control)  # rank 0 may still be writing what the others have left to it
        # One that returned would wait for the launcher to take its result, which one that is told to end never does.
        raise SystemExit(PREEMPTED_EXIT_CODE) from None
    except Exception as error:
        events.put(error)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return result
