"""A Dagster deployment in a folder: an instance with a run launcher, a code server, and run monitoring by hand."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._cli.job import _create_run
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration

from tests.orchestration.launchers.containers import REPOSITORY

MODULE = "tests.orchestration.launchers.tiny_graph"
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


def wait_for(condition: Callable[[], Any], seconds: float = 90, what: str = "condition") -> Any:
    """The condition's first true value; fails the test after a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come true within {seconds} s")


class Deployment:
    """Launches runs of the tiny graph as the run coordinator does, and watches them as the daemon does."""

    def __init__(self, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext, module: str) -> None:
        self.instance, self._workspace, self._module = instance, workspace, module

    def launch(self, job: str, folder: Path, tags: dict[str, str] | None = None, **config: Any) -> str:
        """Create and launch a run of the tiny graph; its id."""
        return self.start(job, {"ops": {"counted": {"config": {"folder": str(folder), **config}}}}, tags)

    def start(self, job: str, run_config: dict[str, Any], tags: dict[str, str] | None = None) -> str:
        """Create and launch a run of any job; its id."""
        request = self._workspace.create_request_context()
        location = request.get_code_location(self._module)
        repository = next(iter(location.get_repositories().values()))
        run = _create_run(
            instance=self.instance,
            code_location=location,
            remote_repo=repository,
            remote_job=repository.get_full_job(job),
            run_config=run_config,
            tags=tags,
            op_selection=None,
            run_id=None,
        )
        self.instance.submit_run(run.run_id, request)
        return run.run_id

    def run(self, run_id: str) -> dg.DagsterRun:
        """The run as the instance knows it now."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run

    def wait(self, run_id: str, seconds: float = 90) -> dg.DagsterRunStatus:
        """The status with which a run ends."""
        wait_for(lambda: self.run(run_id).status in FINISHED, seconds, f"the end of run {run_id}")
        return self.run(run_id).status

    def monitor(self) -> None:
        """One round of Dagster's own run monitoring, which must stumble over nothing."""
        assert self.monitor_faults() == []

    def monitor_faults(self) -> list[str]:
        """One round of run monitoring; what it stumbled over."""
        errors = execute_run_monitoring_iteration(self._workspace, logging.getLogger("monitoring"))
        return [error.to_string() for error in errors if error is not None]

    def messages(self, run_id: str) -> str:
        """Every message of a run's log, errors included."""
        lines = []
        for entry in self.instance.all_logs(run_id):
            lines.append(entry.user_message or entry.message)
            error = getattr(entry.dagster_event and entry.dagster_event.event_specific_data, "error", None)
            lines.append(error.to_string() if error else "")
        return "\n".join(lines)


@contextmanager
def deploy(folder: Path, run_launcher: dict[str, Any], module: str = MODULE) -> Iterator[Deployment]:
    """A deployment of a module's definitions with this run launcher in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "run_launcher": run_launcher,
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
        "run_monitoring": {
            "enabled": True,
            "start_timeout_seconds": 120,
            "cancel_timeout_seconds": 120,
            "max_resume_run_attempts": 2,
        },
        "telemetry": {"enabled": False},
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    target = ModuleTarget(module_name=module, attribute=None, working_directory=str(REPOSITORY), location_name=module)
    with (
        dg.DagsterInstance.from_config(str(folder)) as instance,
        WorkspaceProcessContext(instance, target) as workspace,
    ):
        yield Deployment(instance, workspace, module)
    workspace._grpc_server_registry.wait_for_processes()
