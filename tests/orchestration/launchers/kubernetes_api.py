"""A stand-in for a Kubernetes API server: batch/v1 jobs and the core/v1 calls around them, run as local processes.

It refuses what a strict API server refuses (fields or values outside the published schema), and knows one node.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema

from tests.orchestration.launchers.containers import Container
from tests.orchestration.launchers.http_server import Answer, JsonServer

SCHEMA_PATH = Path(__file__).parents[2] / "golden" / "kubernetes" / "job-batch-v1.json"
_NAMESPACE = r"/namespaces/(?P<namespace>[a-z0-9-]+)"
_NAME = r"/(?P<name>[a-z0-9.-]+)"


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    """What the published schema of batch/v1 Job objects to, with the path of each."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_PATH.read_text()))
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(manifest)]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class KubernetesApi(JsonServer):
    """One namespace-aware cluster. `manifests` keeps every job ever created; `containers` the processes by pod."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.manifests: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.containers: dict[str, Container] = {}
        jobs, pods = rf"/apis/batch/v1{_NAMESPACE}/jobs", rf"/api/v1{_NAMESPACE}/pods"
        self.route("POST", jobs, self._create_job)
        self.route("GET", jobs, lambda _m, query, _b: self._list("JobList", self.jobs, query))
        self.route("GET", rf"{jobs}{_NAME}(/status)?", lambda match, _q, _b: self._read(self.jobs, match))
        self.route("DELETE", rf"{jobs}{_NAME}", self._delete_job)
        self.route("GET", pods, lambda _m, query, _b: self._list("PodList", self.pods, query))
        self.route("GET", rf"{pods}{_NAME}", lambda match, _q, _b: self._read(self.pods, match))
        self.route("GET", rf"{pods}{_NAME}/log", lambda match, _q, _b: (200, self.containers[match["name"]].log))
        self.route("DELETE", rf"{pods}{_NAME}", self._delete_pod)
        self.route("GET", rf"/api/v1{_NAMESPACE}/events", lambda *_: (200, {"kind": "EventList", "items": []}))
        self.unschedulable = False
        """New pods of steps stay pending, as where no node can hold them."""

    def __exit__(self, *error: object) -> None:
        for container in self.containers.values():
            container.kill()
        super().__exit__(*error)

    def lose_pod(self, job_name: str) -> None:
        """The node of a job's pod is gone: no signal was seen, and the pod has vanished."""
        self.containers[job_name].kill()
        self._collect(self.pods.pop(job_name))

    def _collect(self, owner: dict[str, Any]) -> None:
        """What the garbage collector does for a pod that is gone: the jobs it owns go, and their pods."""
        for name, job in list(self.jobs.items()):
            owners = [item["uid"] for item in job["metadata"].get("ownerReferences", [])]
            if owner["metadata"]["uid"] in owners:
                self.jobs.pop(name)
                self.pods.pop(name, None)
                self.containers[name].stop()

    def kubeconfig(self) -> Path:
        """A kubeconfig file that leads here."""
        path = self.folder / "kubeconfig.json"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "contexts": [
                {"name": "stand-in", "context": {"cluster": "stand-in", "user": "tester", "namespace": "yt8m"}}
            ],
            "clusters": [{"name": "stand-in", "cluster": {"server": f"http://{self.address}"}}],
            "users": [{"name": "tester", "user": {"token": "loopback"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def _create_job(self, match: re.Match[str], _query: dict[str, str], body: bytes) -> Answer:
        manifest = json.loads(body)
        errors = schema_errors(manifest)
        name = manifest["metadata"]["name"]
        if errors:
            return 422, {"kind": "Status", "status": "Failure", "reason": "Invalid", "message": "; ".join(errors)}
        if name in self.containers and self.containers[name].exit_code is None:
            self.containers[name].kill()
        if name in self.jobs:
            return 409, {"kind": "Status", "status": "Failure", "reason": "AlreadyExists"}
        metadata = manifest["metadata"] | {"namespace": match["namespace"], "uid": f"uid-{name}"}
        self.manifests[name] = manifest
        self.jobs[name] = manifest | {"metadata": metadata}
        template = manifest["spec"]["template"]
        labels = template["metadata"].get("labels", {}) | {"job-name": name, "batch.kubernetes.io/job-name": name}
        self.pods[name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": match["namespace"], "labels": labels, "uid": f"pod-{name}"},
            "spec": template["spec"],
        }
        container = template["spec"]["containers"][0]
        env = {item["name"]: item["value"] for item in container.get("env", []) if "value" in item}
        command = [*container.get("command", []), *container.get("args", [])]
        if self.unschedulable and template["metadata"]["labels"].get("app.kubernetes.io/component") == "step_worker":
            command = ["sleep", "600"]
            self.pods[name]["pending"] = "0/3 nodes are available: 3 Insufficient ephemeral-storage."
        self.containers[name] = Container(command, env | {"HOSTNAME": name}, self.folder / f"{name}.log")
        self.jobs[name]["status"] = {"startTime": _now()}
        return 201, self._with_status(self.jobs[name])

    def _with_status(self, item: dict[str, Any]) -> dict[str, Any]:
        name = item["metadata"]["name"]
        code = self.containers[name].exit_code
        if item["kind"] == "Job":
            count = "active" if code is None else "succeeded" if code == 0 else "failed"
            return item | {"status": {**item["status"], count: 1}}
        if "pending" in item:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            status = {"phase": "Pending", "conditions": [condition | {"message": item["pending"]}]}
            return {name: value for name, value in item.items() if name != "pending"} | {"status": status}
        phase = "Running" if code is None else "Succeeded" if code == 0 else "Failed"
        state: dict[str, Any] = {"running": {"startedAt": _now()}}
        if code is not None:
            state = {"terminated": {"exitCode": abs(code), "reason": "Completed" if code == 0 else "Error"}}
        status = {
            "name": "dagster",
            "ready": code is None,
            "restartCount": 0,
            "image": "i",
            "imageID": "i",
            "state": state,
        }
        return item | {"status": {"phase": phase, "containerStatuses": [status]}}

    def _read(self, items: dict[str, dict[str, Any]], match: re.Match[str]) -> Answer:
        if match["name"] not in items:
            return 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        return 200, self._with_status(items[match["name"]])

    def _list(self, kind: str, items: dict[str, dict[str, Any]], query: dict[str, str]) -> Answer:
        wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")
        chosen = [
            self._with_status(item)
            for key, item in list(items.items())
            if wanted.items() <= item["metadata"].get("labels", {}).items() and name in ("", key)
        ]
        return 200, {"kind": kind, "metadata": {}, "items": chosen}

    def _delete_job(self, match: re.Match[str], _query: dict[str, str], _body: bytes) -> Answer:
        if match["name"] not in self.jobs:
            return 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        self.jobs.pop(match["name"])
        return 200, {"kind": "Status", "status": "Success"}

    def _delete_pod(self, match: re.Match[str], _query: dict[str, str], _body: bytes) -> Answer:
        if match["name"] not in self.pods:
            return 404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}
        pod = self._with_status(self.pods.pop(match["name"]))
        self.containers[match["name"]].stop()
        self._collect(pod)
        return 200, pod
