"""Which faults of a stage Dagster tries again, and which end the run."""

import dagster as dg
import pytest

from tests.assets.support import run
from yt8m_assets.assets.failures import DRIVER_TAG, runs_in_driver, stage_errors
from yt8m_assets.assets.shell import RETRY
from yt8m_assets.errors import ConfigError, PartitionBusyError
from yt8m_assets.training.interruption import TrainingPreempted


def failing_asset(error: Exception, attempts: list[int], times: int = 99) -> dg.AssetsDefinition:
    """An asset whose stage raises `error` the first `times` times, under the retry policy without its pauses."""

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=RETRY.max_retries, delay=0))
    def asset(context: dg.AssetExecutionContext) -> None:
        attempts.append(context.retry_number)
        with stage_errors(context):
            if len(attempts) <= times:
                raise error

    return asset


@pytest.mark.parametrize("error", [ConfigError("recipe is wrong"), RuntimeError("a bug"), ValueError("a value")])
def test_what_will_not_pass_is_tried_once(error: Exception) -> None:
    """RELIABILITY F34."""
    attempts: list[int] = []
    result = run(failing_asset(error, attempts))
    assert not result.success
    assert attempts == [0]
    (failure,) = (event for event in result.all_events if event.is_step_failure)
    described = failure.step_failure_data.user_failure_data
    assert described is not None
    assert described.description == f"{type(error).__name__}: {error}"


def test_what_may_pass_is_tried_again() -> None:
    attempts: list[int] = []
    assert run(failing_asset(PartitionBusyError("busy"), attempts, times=2)).success
    assert attempts == [0, 1, 2]


def test_what_never_passes_ends_with_the_policy() -> None:
    attempts: list[int] = []
    assert not run(failing_asset(PartitionBusyError("busy"), attempts)).success
    assert len(attempts) == 1 + RETRY.max_retries


def test_who_was_asked_to_stop_does_not_go_on_in_the_command_line() -> None:
    attempts: list[int] = []
    assert not run(failing_asset(TrainingPreempted(3), attempts), tags={DRIVER_TAG: "host 1 2"}).success
    assert attempts == [0]
    assert run(failing_asset(TrainingPreempted(3), attempts, times=2)).success


def interrupted_asset(attempts: list[int], status: str | None) -> dg.AssetsDefinition:
    """An asset whose first attempt gets the signal that ends a run, after the run's status changed."""

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1, delay=0))
    def asset(context: dg.AssetExecutionContext) -> None:
        attempts.append(context.retry_number)
        with stage_errors(context):
            if status == "CANCELING":
                context.instance.report_run_canceling(context.run)
            if len(attempts) == 1:
                raise dg.DagsterExecutionInterruptedError

    return asset


def test_a_canceled_run_is_not_tried_again_and_ends_as_canceled() -> None:
    attempts: list[int] = []
    with dg.DagsterInstance.ephemeral() as instance:
        result = run(interrupted_asset(attempts, "CANCELING"), instance=instance)
        assert attempts == [0]
        ended = instance.get_run_by_id(result.run_id)
        assert ended is not None
        assert ended.status == dg.DagsterRunStatus.CANCELED


def test_a_machine_taken_away_is_no_wish_to_stop() -> None:
    attempts: list[int] = []
    assert run(interrupted_asset(attempts, None)).success
    assert attempts == [0, 1]


def test_ctrl_c_ends_the_command_line() -> None:
    attempts: list[int] = []
    assert not run(interrupted_asset(attempts, None), tags={DRIVER_TAG: "host 1 2"}).success
    assert attempts == [0]


def test_a_reexecution_from_a_page_is_not_the_command_lines() -> None:
    """Dagster copies the tags of the run that is executed again."""
    tags = {DRIVER_TAG: "host 1 2"}
    assert runs_in_driver(dg.DagsterRun("job", run_id="a", tags=tags))
    assert not runs_in_driver(dg.DagsterRun("job", run_id="b", tags=tags, parent_run_id="a", root_run_id="a"))
    assert not runs_in_driver(dg.DagsterRun("job", run_id="c"))
