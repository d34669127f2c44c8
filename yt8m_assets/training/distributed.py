"""Data-parallel training over several processes of this machine, started by torchrun's launcher.

The ranks run `run_job` like a single process does; what rank 0 tracks and shows is relayed to this process, which holds
the tracker, the progress display and the publication.
"""

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from yt8m_assets.errors import WorkerCrashError, Yt8mError
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import NullRun
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted, stop_on_signals
from yt8m_assets.training.job import TrainingJob, run_job, training_device
from yt8m_assets.training.team import Team

MONITOR_SECONDS = 0.1
"""How often the launcher looks after the ranks."""
PATIENCE = timedelta(hours=12)
"""How long ranks wait for rank 0 to evaluate and compare weights; a rank that died is noticed at once all the same."""


class RelayRun(NullRun):
    """A tracked run whose metrics go to the process that holds the real one."""

    def __init__(self, events: Any, run_id: str | None) -> None:
        self.events, self.run_id = events, run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one point per metric."""
        self.events.put(("metrics", dict(metrics), step))


class RelayTask:
    """A progress task whose display is in another process."""

    def __init__(self, events: Any) -> None:
        self.events = events

    def resume(self, count: int) -> None:
        """Send the count that was reached earlier."""
        self.events.put(("resume", count))

    def advance(self, count: int = 1) -> None:
        """Send a count."""
        self.events.put(("advance", count))

    def update(self, **fields: Any) -> None:
        """Send fields to show."""
        self.events.put(("update", fields))


@contextmanager
def relayed(events: Any, tracked: Any, task: Any, errors: list[BaseException]) -> Iterator[None]:
    """Hand on what the ranks send while the block runs."""

    def hand_on() -> None:
        while True:
            kind, *values = events.get()
            if kind == "end":
                return
            if kind == "error":
                errors.append(values[0])
            elif kind == "metrics" and tracked is not None:
                tracked.log_metrics(*values)
            elif kind == "resume" and task is not None:
                task.resume(*values)
            elif kind == "advance" and task is not None:
                task.advance(*values)
            elif kind == "update" and task is not None:
                task.update(**values[0])

    thread = threading.Thread(target=hand_on, name="rank-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        events.put(("end",))
        thread.join()


def run_on_ranks(
    job: TrainingJob,
    store: ArtifactStore,
    output_path: Path,
    *,
    tracked: Any = None,
    task: Any = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """`run_job` on `num_processes` ranks; the summary of rank 0.

    Raises the ranks' own error where it is one of ours, TrainingPreempted when this process was told to end, and
    WorkerCrashError naming the rank and its exit code or signal when a rank died; the other ranks are ended at once.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.config.num_processes,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=MONITOR_SECONDS,
        start_method="spawn",
    )
    events = torch.multiprocessing.get_context("spawn").Queue()
    errors: list[BaseException] = []
    run_id = tracked.run_id if tracked is not None else None
    arguments = (job, store.root_uri, store.cache_path, output_path, events, run_id, torch.get_num_threads())
    try:
        with relayed(events, tracked, task, errors):
            results = elastic_launch(config, run_rank)(*arguments)
    except SignalException as error:
        state = job.checkpoints(store).peek()
        raise TrainingPreempted(state["loop"]["step"] if state else 0) from error
    except ChildFailedError as error:
        own = [found for found in errors if isinstance(found, Yt8mError)]
        if own:
            raise own[0] from error
        rank, failure = error.get_first_failure()
        cause = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        reason = f": {errors[0]!r}" if errors and failure.exitcode > 0 else ""  # others just lost their connection
        raise WorkerCrashError(
            f"rank {rank} of {job.config.num_processes} died with {cause}{reason}; run again to continue from the last "
            "checkpoint"
        ) from error
    if results[0].get("preempted") is not None:
        raise TrainingPreempted(results[0]["preempted"])
    return results[0]


def run_rank(
    job: TrainingJob,
    root_uri: str,
    cache_path: Path,
    output_path: Path,
    events: Any,
    run_id: str | None,
    num_threads: int,
) -> dict[str, Any]:
    """What each rank's process runs; the launcher says by environment which rank it is."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = training_device(rank)
    torch.set_num_threads(max(num_threads // size, 1))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        with stop_on_signals(second_interrupts=False) as stop:
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
            control = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
            summary = run_job(
                job,
                ArtifactStore(root_uri, cache_path),
                output_path,
                tracked=RelayRun(events, run_id) if rank == 0 else None,
                task=RelayTask(events) if rank == 0 else None,
                stop=stop,
                team=Team(rank, size, control),
            )
            torch.distributed.barrier(group=control)  # rank 0 still compares weights when the others are through
    except TrainingPreempted as preempted:
        return {"preempted": preempted.step}
    except Exception as error:
        events.put(("error", error))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return summary
