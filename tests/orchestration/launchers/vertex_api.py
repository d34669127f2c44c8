"""A stand-in for Vertex AI's job service over REST, custom jobs run as local processes, and for the logs they leave.

Requests are parsed by the API's own message types with unknown fields refused, and checked against the documented
limits (machine types and their accelerators, labels, 100,000 characters of arguments).
"""

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.cloud.aiplatform_v1 import types

from tests.orchestration.launchers.containers import REPOSITORY, Container
from tests.orchestration.launchers.http_server import Answer, JsonServer

_PARENT = r"/v1/(?P<parent>projects/[a-z0-9-]+/locations/[a-z0-9-]+)/customJobs"
_ID = r"/(?P<id>\d+)"
_FILTER = re.compile(r'resource\.type="ml_job" AND resource\.labels\.job_id="(\d+)" AND timestamp>="([^"]+)"')
_State = types.JobState
_CHEAP = ("SPOT", "FLEX_START")


def _error(code: int, status: str, message: str) -> Answer:
    return code, {"error": {"code": code, "status": status, "message": message}}


TABLE = json.loads((REPOSITORY / "tests" / "golden" / "gcp" / "machine_types.json").read_text())
"""What Google offers, from its price list: nothing of the code under test."""
OFFERED = {(name, 0, None) for name in TABLE["vcpu_and_gib"] if name.startswith(("e2-", "n1-"))} | {
    (name, int(count), types.AcceleratorType[gpu.upper().replace("-", "_")])
    for gpu, counts in TABLE["gpus"].items()
    for count, names in counts.items()
    for name in names
}


def _problems(job: types.CustomJob) -> list[str]:
    problems = []
    pool, scheduling = job.job_spec.worker_pool_specs[0], job.job_spec.scheduling
    machine, kind = pool.machine_spec, pool.machine_spec.accelerator_type
    if (machine.machine_type, machine.accelerator_count, kind or None) not in OFFERED:
        problems.append(f"machine {machine.machine_type} with {machine.accelerator_count} x {kind.name} is not offered")
    if re.fullmatch(r"a3-highgpu-[124]g", machine.machine_type) and scheduling.strategy.name not in _CHEAP:
        problems.append(f"{machine.machine_type} is offered as Spot or Flex-start only")
    if scheduling.strategy.name in ("ON_DEMAND", "LOW_COST"):
        problems.append(f"strategy {scheduling.strategy.name} is deprecated")
    if not 100 <= pool.disk_spec.boot_disk_size_gb <= 64000:
        problems.append(f"boot_disk_size_gb is {pool.disk_spec.boot_disk_size_gb}: from 100 to 64000")
    if job.job_spec.network and job.job_spec.psc_interface_config.network_attachment:
        problems.append("network and psc_interface_config exclude each other")
    for key, value in job.labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", key) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            problems.append(f"label {key}={value} is not allowed")
    if sum(map(len, pool.container_spec.args)) > 100_000:
        problems.append("the arguments have more than 100,000 characters")
    if not pool.container_spec.image_uri or pool.replica_count != 1:
        problems.append("the first worker pool has one replica and an image")
    return problems


class VertexApi(JsonServer):
    """Jobs by resource name. `hold` keeps new jobs pending, as when there is no capacity."""

    def __init__(self, folder: Path, machine: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.machine = dict(machine or {})
        """What a process finds on a machine, beside what its job says: variables of the network it is in, say."""
        self.root = folder / "machine"
        """Where the folder /var/lib of a machine really is."""
        self.lines: dict[str, list[dict[str, Any]]] = {}
        self.log_faults: list[Answer] = []
        """Answers to give to the next calls for logs."""
        self.hold = False
        self.lose_next_answer: int | None = None
        """Make the next job, and answer with this status, or not at all (NO_ANSWER)."""
        self.hide_from_lists = 0
        """How many of the next lists do not yet have what was made."""
        self.delay_next_answer = 0.0
        """Make the next job at once, and answer after so many seconds."""
        self.jobs: dict[str, types.CustomJob] = {}
        self.containers: dict[str, Container] = {}
        self.canceled: set[str] = set()
        self.preempted: set[str] = set()
        self.route("POST", _PARENT, self._create)
        self.route("GET", _PARENT, self._list)
        self.route("GET", _PARENT + _ID, self._get)
        self.route("POST", _PARENT + _ID + ":cancel", self._cancel)
        self.route("POST", "/v2/entries:list", self._logs)

    def __exit__(self, *error: object) -> None:
        for container in self.containers.values():
            container.kill()
        super().__exit__(*error)

    def lose_worker(self, name: str) -> None:
        """The machine of a job is gone without a signal."""
        self.containers[name].kill()

    def preempt(self, name: str) -> None:
        """The machine of a job is taken away with notice (SIGTERM); the job fails whatever its worker does."""
        self.preempted.add(name)
        self.containers[name].stop(grace_seconds=2)

    def cancel(self, name: str) -> None:
        """What the API's cancel does: the worker is told to stop, and the job ends as canceled."""
        self.canceled.add(name)
        if name in self.containers:
            self.containers[name].stop()

    def current(self, name: str) -> types.CustomJob:
        """The job with its state of this moment."""
        job = types.CustomJob(self.jobs[name])
        container = self.containers.get(name)
        code = container.exit_code if container else None
        if name in self.canceled:
            running = container is not None and code is None
            job.state = _State.JOB_STATE_CANCELLING if running else _State.JOB_STATE_CANCELLED
        elif container is None:
            job.state = _State.JOB_STATE_PENDING
        elif code is None:
            job.state = _State.JOB_STATE_RUNNING
        elif code == 0 and name not in self.preempted:
            job.state = _State.JOB_STATE_SUCCEEDED
        else:
            job.state = _State.JOB_STATE_FAILED
            job.error.code = 3
            job.error.message = f"The replica workerpool0-0 exited with a non-zero status of {abs(code)}."
        return job

    def _json(self, job: types.CustomJob) -> Any:
        return types.CustomJob.to_dict(job, use_integers_for_enums=False, preserving_proto_field_name=False)

    def _create(self, match: re.Match[str], _query: dict[str, str], body: bytes) -> Answer:
        try:
            job = types.CustomJob.from_json(body, ignore_unknown_fields=False)
        except ValueError as error:  # protobuf's ParseError
            return _error(400, "INVALID_ARGUMENT", str(error))
        problems = _problems(job)
        if problems:
            return _error(400, "INVALID_ARGUMENT", "; ".join(problems))
        job.name = f"{match['parent']}/customJobs/{8000 + len(self.jobs)}"
        self.jobs[job.name] = job
        if not self.hold:
            spec = job.job_spec.worker_pool_specs[0].container_spec
            command = [word.replace("/var/lib/", f"{self.root}/") for word in [*spec.command, *spec.args]]
            log = self.folder / f"vertex-{len(self.jobs)}.log"
            environment = self.machine | {item.name: item.value for item in spec.env}
            self.containers[job.name] = Container(command, environment, log)
        if self.lose_next_answer is not None:
            status, self.lose_next_answer = self.lose_next_answer, None
            return _error(status, "UNAVAILABLE", "the answer got lost")
        pause, self.delay_next_answer = self.delay_next_answer, 0.0
        time.sleep(pause)
        return 200, self._json(self.current(job.name))

    def _list(self, _match: re.Match[str], query: dict[str, str], _body: bytes) -> Answer:
        wanted = dict(re.findall(r"labels\.([a-z0-9_-]+)=([a-z0-9_-]+)", query.get("filter", "")))
        if self.hide_from_lists:
            self.hide_from_lists -= 1
            return 200, {"customJobs": []}
        chosen = [self.current(name) for name, job in self.jobs.items() if wanted.items() <= dict(job.labels).items()]
        return 200, {"customJobs": [self._json(job) for job in chosen]}

    def _get(self, match: re.Match[str], _query: dict[str, str], _body: bytes) -> Answer:
        name = match[0].removeprefix("/v1/")
        if name not in self.jobs:
            return _error(404, "NOT_FOUND", f"{name} not found")
        return 200, self._json(self.current(name))

    def _cancel(self, match: re.Match[str], _query: dict[str, str], _body: bytes) -> Answer:
        name = match[0].removeprefix("/v1/").removesuffix(":cancel")
        if name not in self.jobs:
            return _error(404, "NOT_FOUND", f"{name} not found")
        self.cancel(name)
        return 200, {}

    def _logs(self, _match: re.Match[str], _query: dict[str, str], body: bytes) -> Answer:
        """entries.list of Cloud Logging: what was written so far, in pages, with the odd digits of its timestamps."""
        if self.log_faults:
            return self.log_faults.pop(0)
        asked = json.loads(body)
        if unknown := set(asked) - {"resourceNames", "filter", "orderBy", "pageSize", "pageToken"}:
            return _error(400, "INVALID_ARGUMENT", f"unknown name {sorted(unknown)[0]}")
        number, since = _FILTER.fullmatch(asked["filter"]).groups()  # type: ignore[union-attr]
        name = next((name for name in self.jobs if name.endswith(f"/{number}")), "")
        if f"projects/{name.split('/')[1]}" not in asked["resourceNames"] or asked["orderBy"] != "timestamp asc":
            return _error(400, "INVALID_ARGUMENT", "resourceNames, or orderBy")
        entries = self.lines.setdefault(name, [])
        written = self.containers[name].log.splitlines() if name in self.containers else []
        resource = {"type": "ml_job", "labels": {"job_id": number, "task_name": "workerpool0-0"}}
        for line in written[len(entries) :]:
            stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}789Z"
            entry = {"insertId": f"id{len(entries)}", "timestamp": stamp, "resource": resource}
            # Google's agent says it one way, a container's own line may come the other
            entries.append(entry | ({"textPayload": line} if len(entries) % 2 else {"jsonPayload": {"message": line}}))
        found = [entry for entry in entries if entry["timestamp"] >= since]
        start, size = int(asked.get("pageToken", 0)), min(asked["pageSize"], 20)
        more = {"nextPageToken": str(start + size)} if start + size < len(found) else {}
        return 200, {"entries": found[start : start + size], **more} if found else {}
