"""The few calls of Vertex AI's job service that a run launcher needs, over REST, with retries where they are safe."""

from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestration.launchers.vertex_job import ATTEMPT_LABEL, RUN_LABEL

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import JobServiceClient
    from google.cloud.aiplatform_v1.types import CustomJob

_CALL_SECONDS = 30.0
_RETRY_SECONDS = 60.0


class VertexJobs:
    """Custom jobs of one project and region. The client is made on first use, so that a worker never needs one."""

    def __init__(self, project: str, location: str, emulator_host: str | None = None) -> None:
        self._project, self._location, self._emulator_host = project, location, emulator_host

    @cached_property
    def _client(self) -> "JobServiceClient":
        try:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud.aiplatform_v1 import JobServiceClient
            from google.cloud.aiplatform_v1.services.job_service.transports import JobServiceRestTransport
        except ImportError as error:
            raise ImportError(
                "VertexAIRunLauncher needs google-cloud-aiplatform: install it, here with pip install '.[vertex]'"
            ) from error
        if self._emulator_host:
            transport = JobServiceRestTransport(
                host=self._emulator_host, url_scheme="http", credentials=AnonymousCredentials()
            )
        else:
            transport = JobServiceRestTransport(host=f"{self._location}-aiplatform.googleapis.com")
        return JobServiceClient(transport=transport)

    @property
    def _parent(self) -> str:
        return f"projects/{self._project}/locations/{self._location}"

    @staticmethod
    def _patience() -> dict[str, Any]:
        from google.api_core import retry

        return {"timeout": _CALL_SECONDS, "retry": retry.Retry(timeout=_RETRY_SECONDS)}

    def create(self, job: "CustomJob") -> "CustomJob":
        """Submit a job. An answer that got lost is looked up by the job's labels instead of asked for again."""
        from google.api_core import exceptions

        try:
            return self._client.create_custom_job(parent=self._parent, custom_job=job, timeout=_CALL_SECONDS)
        except (exceptions.ServerError, exceptions.RetryError, ConnectionError):
            made = self.find(job.labels[RUN_LABEL], job.labels[ATTEMPT_LABEL])
            if made is None:
                raise
            return made

    def find(self, run_label: str, attempt_label: str) -> "CustomJob | None":
        """The job of one attempt of a run, by its labels."""
        query = f"labels.{RUN_LABEL}={run_label} AND labels.{ATTEMPT_LABEL}={attempt_label}"
        request = {"parent": self._parent, "filter": query}
        return next(iter(self._client.list_custom_jobs(request=request, **self._patience())), None)

    def get(self, name: str) -> "CustomJob | None":
        """The job of a resource name; None when it does not exist."""
        from google.api_core import exceptions

        try:
            return self._client.get_custom_job(name=name, **self._patience())
        except exceptions.NotFound:
            return None

    def cancel(self, name: str) -> None:
        """Ask Vertex AI to stop a job; it tells the worker and then ends it."""
        self._client.cancel_custom_job(name=name, **self._patience())

    def console_url(self, name: str) -> str:
        """The job's page in the Google Cloud console."""
        number = name.rsplit("/", 1)[-1]
        page = "https://console.cloud.google.com/vertex-ai/locations"
        return f"{page}/{self._location}/training/{number}?project={self._project}"

    def logs_url(self, name: str) -> str:
        """The job's logs in the Google Cloud console."""
        number = name.rsplit("/", 1)[-1]
        query = f'resource.type="ml_job" resource.labels.job_id="{number}"'
        return f"https://console.cloud.google.com/logs/query;query={quote(query)}?project={self._project}"
