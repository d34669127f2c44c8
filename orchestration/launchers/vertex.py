"""A Dagster run launcher that starts each run as a Vertex AI custom job.

In dagster.yaml (run monitoring is what notices a lost worker and resumes its run)::

    run_launcher:
      module: orchestration.launchers.vertex
      class: VertexAIRunLauncher
      config:
        project: my-project
        location: europe-west4
        image: europe-west4-docker.pkg.dev/my-project/yt8m/cuda:1
        service_account: dagster@my-project.iam.gserviceaccount.com
        env_vars: [DAGSTER_PG_HOST]
    run_monitoring: {enabled: true, start_timeout_seconds: 3600, max_resume_run_attempts: 3}

The image needs Dagster, the code location at the same module path, and a way to the instance's database. A job's
environment can be read by whoever may read the job: keep secrets out of env_vars (a database user that is the job's own
service account needs no password: `auth_provider: {gcp_wif: {}}`), or read them from Secret Manager.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from dagster import Field, Noneable, StringSource
from dagster._cli.api import ExecuteRunArgs
from dagster._core.events import EngineEventData
from dagster._core.launcher import LaunchRunContext, ResumeRunContext, RunLauncher
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.storage.dagster_run import DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import DOCKER_IMAGE_TAG
from dagster._grpc.types import ResumeRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from orchestration.launchers.vertex_client import VertexJobs
from orchestration.launchers.vertex_job import JOB_FIELDS, build_custom_job, label_value, resolve_settings

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob

logger = logging.getLogger(__name__)

JOB_TAG = "vertex-ai/custom-job"
"""Run tag with the resource name of the custom job that carries the run now."""

_WAITING = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING")
_ALIVE = (*_WAITING, "JOB_STATE_RUNNING", "JOB_STATE_UPDATING", "JOB_STATE_CANCELLING", "JOB_STATE_PAUSED")
_ALIVE_OR_UNKNOWN = (*_ALIVE, "JOB_STATE_UNSPECIFIED")


class VertexAIRunLauncher(RunLauncher, ConfigurableClass):
    """Launches, watches, cancels and resumes runs as Vertex AI custom jobs; see `config_type` for its settings."""

    def __init__(self, inst_data: ConfigurableClassData | None = None, **config: Any) -> None:
        self._inst_data = inst_data
        self._config = config
        self._jobs = VertexJobs(config["project"], config["location"], config.get("emulator_host"))
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where the configuration was read from."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """The settings under `run_launcher.config`."""

        def text(description: str) -> Field:
            return Field(Noneable(StringSource), is_required=False, description=description)

        return {
            "project": Field(StringSource, description="Google Cloud project that runs and pays for the jobs."),
            "location": Field(StringSource, description="Region of the jobs, such as europe-west4."),
            "service_account": text("E-mail of the service account that the container acts as."),
            "network": text("VPC network to peer with, projects/NUMBER/global/networks/NAME; or network_attachment."),
            "network_attachment": text("Network attachment by which workers reach the VPC and its peers (Cloud SQL)."),
            "kms_key_name": text("Key that encrypts the job."),
            "emulator_host": text("HOST:PORT of a stand-in that speaks the REST API over plain HTTP, for tests."),
            "fail_job_on_run_failure": Field(
                bool,
                is_required=False,
                default_value=True,
                description="Let the job end as failed when the run fails, so that both consoles agree.",
            ),
            **JOB_FIELDS,
        }

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The launcher of a dagster.yaml."""
        return cls(inst_data=inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submit the run's first custom job. Raises what the API answers; Dagster then marks the run as failed."""
        self._submit(context.dagster_run, ExecuteRunArgs, attempt=0)

    @property
    def supports_resume_run(self) -> bool:
        """A lost worker is replaced by a new job that resumes the run."""
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Submit another custom job that continues the run: finished steps are kept, the interrupted one restarts."""
        self._submit(context.dagster_run, ResumeRunArgs, attempt=context.resume_attempt_number or 1)

    def _submit(self, run: DagsterRun, arguments: type, attempt: int) -> None:
        origin = run.job_code_origin
        if origin is None:
            raise ValueError(f"run {run.run_id} does not say which code it runs, so no worker can load it")
        settings = resolve_settings(self._config, self._step_tags(run), run.tags)
        image = settings.get("image") or origin.repository_origin.container_image
        if not image:
            raise ValueError("image: set it in the run launcher's config, or on the code location as container_image")
        command = arguments(
            job_origin=origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
            set_exit_code_on_failure=self._config.get("fail_job_on_run_failure", True),
        ).get_command_args()
        request = build_custom_job(
            self._config,
            settings,
            args=command,
            image=image,
            run_id=run.run_id,
            job_name=run.job_name,
            attempt=attempt,
        )
        # A process that died between making a job and writing so must not be followed by a second worker.
        job, event = self._current(run), "Vertex AI custom job found running"
        if job is None or job.state.name not in _ALIVE_OR_UNKNOWN:
            job, event = self._jobs.create(request), "Vertex AI custom job created"
        self._instance.add_run_tags(run.run_id, {JOB_TAG: job.name, DOCKER_IMAGE_TAG: image})
        spec = job.job_spec.worker_pool_specs[0].machine_spec
        gpus = f"{spec.accelerator_count} x {spec.accelerator_type.name}" if spec.accelerator_count else "none"
        details = {
            "Custom job": job.name,
            "Console": self._jobs.console_url(job.name),
            "Image": image,
            "Machine": spec.machine_type,
            "Accelerators": gpus,
        }
        self._instance.report_engine_event(event, run, EngineEventData(details), cls=type(self))

    def _current(self, run: DagsterRun) -> "CustomJob | None":
        """The job that carries the run: the one in its tag, or a newer one that nobody lived to write there."""
        name = run.tags.get(JOB_TAG)
        tagged = self._jobs.get(name) if name else None
        if tagged is not None and tagged.state.name in _ALIVE_OR_UNKNOWN:
            return tagged
        newest = next(iter(self._jobs.find_all(label_value(run.run_id))), None)
        if newest is None or newest.name == name:
            return tagged
        self._instance.add_run_tags(run.run_id, {JOB_TAG: newest.name})
        return newest

    def _step_tags(self, run: DagsterRun) -> list[Mapping[str, str] | None]:
        if run.execution_plan_snapshot_id is None:
            return []
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        chosen = set(plan.step_keys_to_execute)
        return [step.tags for step in plan.steps if step.key in chosen]

    def terminate(self, run_id: str) -> bool:
        """Cancel the run's job. True when the run is ending or has ended; False when there is nothing to cancel."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        job = self._current(run)
        if job is None and JOB_TAG not in run.tags:
            return False
        self._instance.report_run_canceling(run)
        if job is not None and job.state.name in _ALIVE_OR_UNKNOWN:
            self._jobs.cancel(job.name)
            message = "Cancellation of the Vertex AI custom job requested"
            self._instance.report_engine_event(message, run, cls=type(self))
            if job.state.name not in _WAITING:
                return True  # the worker is told to stop, and reports the end of the run itself
        # No worker has started, or none is left: nobody else would report the end of the run.
        self._instance.report_run_canceled(run, "Canceled: no Vertex AI worker was running.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks after the worker."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """What the job's state says of the run's worker.

        A fault of the API itself is raised: run monitoring logs it and asks again, while any answer but running
        would start a second worker beside one that may be alive.
        """
        job = self._current(run)
        if job is None:
            name = run.tags.get(JOB_TAG)
            reason = f"{name} does not exist" if name else f"no custom job has the label of run {run.run_id}"
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, reason, run_worker_id=name)
        name = job.name
        state = job.state.name
        if state in _ALIVE_OR_UNKNOWN:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=name)
        if state == "JOB_STATE_CANCELLED" and run.status == DagsterRunStatus.STARTED:
            # Somebody canceled it in Vertex AI: that is a wish, not a fault, and must not be resumed.
            self._instance.report_run_canceled(run, f"{name} was canceled in Vertex AI.")
            return CheckRunHealthResult(WorkerStatus.FAILED, "canceled in Vertex AI", run_worker_id=name)
        if state == "JOB_STATE_SUCCEEDED" and run.status not in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
            return CheckRunHealthResult(WorkerStatus.SUCCESS, run_worker_id=name)
        reason = f": {job.error.message}" if job.error.message else ""
        return CheckRunHealthResult(
            WorkerStatus.FAILED, f"{name} ended as {state} before the run did{reason}", run_worker_id=name
        )

    def get_run_worker_debug_info(self, run: DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """State, error and addresses of the run's job, for the message of a run that failed."""
        job = self._current(run)
        name = run.tags.get(JOB_TAG)
        if job is None:
            return f"{name} does not exist any more." if name else None
        name = job.name
        lines = [f"{name}: {job.state.name}"]
        if job.error.message:
            lines.append(f"Error: {job.error.message}")
        lines += [f"Job: {self._jobs.console_url(name)}", f"Logs: {self._jobs.logs_url(name)}"]
        return "\n".join(lines)
