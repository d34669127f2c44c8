"""A custom job as somebody at a terminal watches it: its states, and the lines that its worker writes."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestration.launchers.vertex_client import VertexJobs, is_passing

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob

ENDED = (
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)
"""States in which a job stays."""
LATE = timedelta(seconds=60)
"""Cloud Logging may show a line so long after a later one."""
_SCOPE = "https://www.googleapis.com/auth/logging.read"
_PAGE = 1000


class JobLogs:
    """The lines of one job in Cloud Logging, each once, in the order of their times as far as they have arrived."""

    def __init__(self, project: str, job_name: str, emulator_host: str | None = None) -> None:
        self._project, self._number, self._emulator_host = project, job_name.rsplit("/", 1)[-1], emulator_host
        self._seen: set[str] = set()
        self._since = datetime.fromtimestamp(0, UTC)

    @cached_property
    def _session(self) -> Any:
        if self._emulator_host:
            import requests

            return requests.Session()
        import google.auth
        from google.auth.transport.requests import AuthorizedSession

        return AuthorizedSession(google.auth.default(scopes=[_SCOPE])[0])

    def read(self) -> Iterator[str]:
        """What has arrived since the last time. Raises what google-auth and requests raise, HTTPError for a refusal."""
        address = f"http://{self._emulator_host}" if self._emulator_host else "https://logging.googleapis.com"
        conditions = [
            'resource.type="ml_job"',
            f'resource.labels.job_id="{self._number}"',
            f'timestamp>="{(self._since - LATE).isoformat() if self._seen else self._since.isoformat()}"',
        ]
        query = {"filter": " AND ".join(conditions), "orderBy": "timestamp asc", "pageSize": _PAGE}
        query["resourceNames"] = [f"projects/{self._project}"]
        token = None
        while True:
            asked = query | ({"pageToken": token} if token else {})
            answer = self._session.post(f"{address}/v2/entries:list", json=asked, timeout=30)
            answer.raise_for_status()
            page = answer.json()
            for entry in page.get("entries", []):
                if entry["insertId"] not in self._seen:
                    self._seen.add(entry["insertId"])
                    # nine digits of a second are more than Python reads
                    self._since = max(self._since, datetime.fromisoformat(entry["timestamp"][:19] + "+00:00"))
                    text = entry.get("textPayload") or entry.get("jsonPayload", {}).get("message") or ""
                    yield from str(text).splitlines()
            token = page.get("nextPageToken")
            if not token:
                return


def follow(
    jobs: VertexJobs, logs: JobLogs, name: str, tell: Callable[[str], None], seconds: float = 10.0
) -> "CustomJob":
    """Tell a job's states and lines until it has ended; the job. KeyboardInterrupt goes through and changes nothing.

    A service or network that is away is waited for, and a log that may not be read is said to be elsewhere: the job
    does not depend on who watches it. Raises LookupError when the job does not exist any more.
    """
    state, complaint = "", ""

    def complain(text: str) -> None:
        nonlocal complaint
        if text != complaint:
            complaint = text
            tell(f"-- {text}")

    while True:
        try:
            job = jobs.get(name)
        except Exception as error:
            if not is_passing(error):
                raise
            complain("Vertex AI does not answer; the job does not need it to. Asking again")
            time.sleep(seconds)
            continue
        if job is None:
            raise LookupError(f"{name} does not exist any more")
        if job.state.name != state:
            state = job.state.name
            tell(f"-- {state.removeprefix('JOB_STATE_').lower()}")
        if state in ENDED:
            time.sleep(seconds)  # the last lines come late
        try:
            for line in logs.read():
                tell(line)
        except Exception as error:  # noqa: BLE001 whatever it is, the job goes on
            complain(f"its log cannot be read here ({error or type(error).__name__}); it is at {jobs.logs_url(name)}")
        if state in ENDED:
            return job
        time.sleep(seconds)
