"""The few calls of Vertex AI's job service that a run launcher needs, over REST, with retries where they are safe."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestration.launchers.vertex_job import ATTEMPT_LABEL, RUN_LABEL

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import JobServiceClient
    from google.cloud.aiplatform_v1.types import CustomJob

_CALL_SECONDS = 30.0
_RETRY_SECONDS = 60.0


def is_passing(error: BaseException) -> bool:
    """Whether a fault says nothing about the request: the service's own, or the way there and back.

    The REST transport is requests': what it raises are requests' and google-auth's errors, no built-in ConnectionError.
    """
    from google.api_core import exceptions
    from google.auth.exceptions import TransportError
    from requests import RequestException

    passing = (exceptions.ServerError, exceptions.TooManyRequests, exceptions.RetryError)
    return isinstance(error, (*passing, RequestException, TransportError))


class VertexJobs:
    """Custom jobs of one project and region. The client is made on first use, so that a worker never needs one."""

    def __init__(
        self,
        project: str,
        location: str,
        emulator_host: str | None = None,
        look_again_seconds: Sequence[float] = (0, 2, 5, 15),
    ) -> None:
        self._project, self._location, self._emulator_host = project, location, emulator_host
        self._look_again_seconds = look_again_seconds

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

        return {"timeout": _CALL_SECONDS, "retry": retry.Retry(predicate=is_passing, timeout=_RETRY_SECONDS)}

    def create(self, job: "CustomJob") -> "CustomJob":
        """Submit a job. An answer that got lost is looked up by the job's labels instead of asked for again.

        The job may appear a little after its answer got lost, so it is looked up several times. Raises what the API
        answered when no job was made.
        """
        try:
            return self._client.create_custom_job(parent=self._parent, custom_job=job, timeout=_CALL_SECONDS)
        except Exception as error:
            if not is_passing(error):
                raise
            for pause in self._look_again_seconds:
                time.sleep(pause)
                made = self.find(job.labels[RUN_LABEL], job.labels[ATTEMPT_LABEL])
                if made is not None:
                    return made
            raise

    def find(self, run_label: str, attempt_label: str) -> "CustomJob | None":
        """The job of one attempt of a run, by its labels."""
        return next((job for job in self.find_all(run_label) if job.labels[ATTEMPT_LABEL] == attempt_label), None)

    def find_all(self, run_label: str) -> list["CustomJob"]:
        """The jobs of a run by their label, the last attempt first."""
        request = {"parent": self._parent, "filter": f"labels.{RUN_LABEL}={run_label}"}
        found = self._client.list_custom_jobs(request=request, **self._patience())
        return sorted(found, key=lambda job: int(job.labels.get(ATTEMPT_LABEL, 0)), reverse=True)

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
