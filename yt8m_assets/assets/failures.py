"""Which faults of a stage are tried again: what may pass, and nothing that a person asked to stop."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from yt8m_assets.errors import ParentMismatchError, TransientError, with_notes

DRIVER_TAG = ".dagster/yt8m_driver"
"""Tag of the runs that the command line executes in its own process: who was asked to stop must not go on there.

Names the process; pages leave out tags with this prefix.
"""

OUTDATED_TAG = "yt8m/outdated_parents"
"""Tag of a run that may build on what is not up to date, as it is there: it refuses without."""


def runs_in_driver(run: dg.DagsterRun) -> bool:
    """Whether the command line executes the run; a re-execution from a page has its tags, but not its process."""
    return DRIVER_TAG in run.tags and run.parent_run_id is None


def asked_for(run: dg.DagsterRun, tag: str) -> bool:
    """Whether a run was launched with a tag of the value "true"."""
    return str(run.tags.get(tag)).lower() == "true"


def wanted(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> bool:
    """Whether a run that a signal interrupted is to go on: not when a person canceled it or pressed Ctrl-C.

    A worker whose machine is taken away gets the same signal; there the run goes on, on another machine.
    """
    run = context.instance.get_run_by_id(context.run.run_id)
    canceled = run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    return not canceled and not runs_in_driver(context.run)


@contextmanager
def stage_errors(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Iterator[None]:
    """Let transient errors reach the retry policy; turn every other one into a failure that is not retried.

    Dagster's policy also retries what a signal interrupted, even where the signal was meant to end the run: a canceled
    run would start its step again until it is killed.
    """
    try:
        yield
    except dg.Failure:
        raise
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        if wanted(context):
            raise
        raise dg.Failure(description="interrupted", allow_retries=False) from interrupt
    except Exception as error:
        asked_to_stop = getattr(error, "exit_code", None) is not None
        if isinstance(error, TransientError) and (not asked_to_stop or wanted(context)):
            raise
        way = f", or run with the tag {OUTDATED_TAG}: true" if isinstance(error, ParentMismatchError) else ""
        text = with_notes(error, f"{type(error).__name__}: {error}{way}")
        raise dg.Failure(description=text, allow_retries=False) from error
