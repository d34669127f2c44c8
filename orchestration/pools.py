"""Pools: who holds a slot, what dead processes left taken, and a wait for one that says so and ends with Ctrl-C."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import dagster as dg

from yt8m_assets.assets.failures import DRIVER_TAG, runs_in_driver

PROCESS_TAG = ".dagster/yt8m_process"
"""Tag of a run that one of this project's executors runs: run id, host, process and its start; not shown on pages."""
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
GRACE_SECONDS = 60.0
"""How long a run that has ended may keep a slot where nothing says whether its processes live."""
POLL_SECONDS = 0.2
TIDY_SECONDS = 5.0
"""Pause between two looks for dead holders while something waits."""


def process_mark() -> str:
    """Names this process, so that a later one can tell whether it still lives: host, id, start."""
    import psutil

    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def process_lives(mark: str) -> bool:
    """Whether the process of a mark still runs; a process of another host is taken to."""
    host, process_id, started = mark.split(" ")
    return host != socket.gethostname() or _started(int(process_id), lambda at: abs(at - float(started)) < 2)


def _started(process_id: int, test: Callable[[float], bool]) -> bool:
    """Whether the process exists, and started when the test says."""
    import psutil

    try:
        process = psutil.Process(process_id)
        return process.status() != psutil.STATUS_ZOMBIE and test(process.create_time())
    except psutil.NoSuchProcess:
        return False


def mark_of(run: dg.DagsterRun) -> str | None:
    """The mark of the process that executes a run; None where no executor of this project has said."""
    if runs_in_driver(run):
        return run.tags[DRIVER_TAG]
    run_id, _, mark = run.tags.get(PROCESS_TAG, "").partition(" ")
    return mark if run_id == run.run_id else None  # a re-execution has its parent's tags, not its process


def run_is_dead(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the process that executed a run on this host is gone, and every process of its steps with it."""
    mark = mark_of(run)
    if mark is None or process_lives(mark):
        return False
    if runs_in_driver(run):
        return True
    events = ((entry.dagster_event, entry.timestamp) for entry in instance.all_logs(run.run_id))
    steps = {(event.pid, written) for event, written in events if event is not None and event.step_key and event.pid}
    return not any(_started(pid, lambda at, written=written: at <= written) for pid, written in steps)  # type: ignore[misc]


def tidy(instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs of dead processes of this host as failed, free what they and runs that are gone hold of the pools.

    Re-makes slots that a pool's limit promises and the table lacks. Returns the ids of the runs that were ended.
    """
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        if run_is_dead(instance, run):
            instance.report_run_failed(run, "The process that executed this run ended without a word.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            ended.append(run.run_id)
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return ended
    pools = {pool.name: pool for pool in storage.get_pool_limits()}
    infos = {name: storage.get_concurrency_info(name) for name in pools}
    holders = {slot.run_id for info in infos.values() for slot in info.claimed_slots}
    holders |= {step.run_id for info in infos.values() for step in info.pending_steps}
    for run_id in holders - set(ended):
        if _holds_nothing(instance, run_id):
            storage.free_concurrency_slots_for_run(run_id)
    for name, pool in pools.items():
        if infos[name].slot_count < pool.limit:
            if pool.from_default:
                storage.initialize_concurrency_limit_to_default(name)
            else:
                storage.set_concurrency_slots(name, pool.limit)
    return ended


def _holds_nothing(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a run that stands in a pool has no right to it: wiped, or over and its processes gone."""
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return True
    if record.dagster_run.status not in FINISHED:
        return False
    over = record.end_time is None or time.time() - record.end_time > GRACE_SECONDS
    return over or run_is_dead(instance, record.dagster_run)


def describe_run(instance: dg.DagsterInstance, run_id: str) -> str:
    """A run for people: its id, what it makes and, where it is known, its process."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return f"run {run_id[:8]}"
    assets = sorted(key.to_user_string() for key in run.asset_selection or ())
    start, end = (run.tags.get(f"dagster/asset_partition_range_{side}") for side in ("start", "end"))
    where = run.tags.get("dagster/partition") or (f"{start} ... {end}" if start else "")
    mark = (mark_of(run) or "").split(" ")
    process = f"process {mark[1]} on {mark[0]}" if len(mark) == 3 else ""
    details = [part for part in (" ".join([", ".join(assets) or run.job_name, where]).strip(), process) if part]
    return f"run {run_id[:8]} ({', '.join(details)})"


def wait_aloud(instance: dg.DagsterInstance, log: Callable[[str], None]) -> None:
    """Make this instance's claims of pool slots wait in a way that people can follow and end.

    Dagster's own wait in a process spins without a word and keeps signals until a step begins. Here one line names the
    holder, a signal raises DagsterExecutionInterruptedError, and what dead processes hold is freed while we wait.
    A pool that another process makes at the same time is no error.
    """
    from sqlalchemy.exc import InternalError

    storage: Any = instance.event_log_storage
    claim = storage.claim_concurrency_slot
    blocked: set[tuple[str, str]] = set()
    initialize = storage.initialize_concurrency_limit_to_default

    def initialize_once(concurrency_key: str) -> bool:
        try:
            return bool(initialize(concurrency_key))
        except InternalError:  # another process has made it; Dagster goes on in a transaction that PostgreSQL has ended
            if all(pool.name != concurrency_key for pool in storage.get_pool_limits()):
                raise
            return True

    storage.initialize_concurrency_limit_to_default = initialize_once

    def patient_claim(concurrency_key: str, run_id: str, step_key: str, priority: int | None = None) -> Any:
        status = claim(concurrency_key, run_id, step_key, priority)
        if not status.is_claimed and (run_id, step_key) not in blocked:
            blocked.add((run_id, step_key))
            return status.with_sleep_interval(0.0)  # so that Dagster's log of the run gets its line before the wait
        if not status.is_claimed:
            again = lambda: claim(concurrency_key, run_id, step_key, priority)  # noqa: E731
            status = _wait(again, instance, concurrency_key, run_id, log)
        return status

    storage.claim_concurrency_slot = patient_claim


def _holders(instance: dg.DagsterInstance, pool: str, run_id: str) -> str:
    """Who else has the slots of a pool, or is next."""
    info = instance.event_log_storage.get_concurrency_info(pool)
    if not info.slot_count:
        return "which has no slots: give it a limit in dagster.yaml or on the page Deployment, Concurrency"
    taken = {slot.run_id for slot in info.claimed_slots} or {step.run_id for step in info.pending_steps}
    return f"held by {', '.join(describe_run(instance, other) for other in sorted(taken - {run_id})) or 'nobody now'}"


def _wait(
    claim: Callable[[], Any], instance: dg.DagsterInstance, pool: str, run_id: str, log: Callable[[str], None]
) -> Any:
    from dagster._utils.interrupts import raise_interrupts_as

    looked, said = -TIDY_SECONDS, ""
    with raise_interrupts_as(dg.DagsterExecutionInterruptedError):
        while not (status := claim()).is_claimed:
            if time.monotonic() - looked >= TIDY_SECONDS:
                tidy(instance)
                looked = time.monotonic()
                line = f"waiting for the {pool} pool, {_holders(instance, pool, run_id)}; Ctrl-C ends the wait"
                if line != said:
                    log(line)
                    said = line
            time.sleep(POLL_SECONDS)
    return status
