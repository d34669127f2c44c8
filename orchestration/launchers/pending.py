"""A limit on how long a Kubernetes step may wait for its pod to start; Dagster itself calls a pending job healthy.

Without it, a pod that no node can hold, that an admission policy refuses, or whose image is missing waits for ever, and
nothing on the run's page says so.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from dagster import DagsterEvent
from dagster._core.executor.step_delegating.step_handler.base import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
)


class PendingLimit(StepHandler):
    """Another step handler (dagster-k8s's), that gives up a step whose pod has not started after so many seconds."""

    def __init__(self, handler: Any, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._handler, self._seconds, self._clock = handler, seconds, clock
        self._waiting_since: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The wrapped handler's name."""
        return str(self._handler.name)

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Start the step's job."""
        yield from self._handler.launch_step(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Delete the step's job."""
        yield from self._handler.terminate_step(step_handler_context)

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """The wrapped handler's verdict, and unhealthy with the cluster's reason once the pod has waited too long."""
        health: CheckStepHealthResult = self._handler.check_step_health(step_handler_context)
        job = self._handler._get_k8s_step_job_name(step_handler_context)
        if not health.is_healthy or not self._seconds:
            return health
        namespace = self._handler._get_container_context(step_handler_context).namespace
        pods = self._handler._api_client.get_pods_in_job(job_name=job, namespace=namespace)
        if pods and pods[-1].status.phase != "Pending":
            self._waiting_since.pop(job, None)
            return health
        since = self._waiting_since.setdefault(job, self._clock())
        if self._clock() - since < self._seconds:
            return health
        reason = self._reason(pods[-1] if pods else None, job, namespace)
        # Before a next attempt starts, or the first pod may still get its node and write beside it.
        list(self._handler.terminate_step(step_handler_context))
        return CheckStepHealthResult.unhealthy(
            f"Kubernetes job {job} has not started after {self._seconds / 60:g} minutes: {reason}. What it asks for is "
            "set by the asset's resource hints; `kubectl describe nodes` shows what there is to give"
        )

    def _reason(self, pod: Any, job: str, namespace: str) -> str:
        if pod is None:
            return f"no pod was made ({self._events(job, namespace) or f'kubectl describe job {job} says why'})"
        found = [item.message or item.reason for item in pod.status.conditions or [] if item.status == "False"]
        for container in pod.status.container_statuses or []:
            waiting = container.state.waiting if container.state else None
            if waiting:
                found.insert(0, f"{waiting.reason}: {waiting.message or ''}".rstrip(": "))
        asked = pod.spec.containers[0].resources
        sizes = {**((asked and asked.requests) or {}), **((asked and asked.limits) or {})}
        shown = ", ".join(f"{name} {value}" for name, value in sorted(sizes.items())) or "nothing in particular"
        return f"{'; '.join(found[:2]) or self._events(pod.metadata.name, namespace)} (it asks for {shown})"

    def _events(self, name: str, namespace: str) -> str:
        events = self._handler._api_client.core_api.list_namespaced_event(
            namespace=namespace, field_selector=f"involvedObject.name={name}"
        ).items
        return "; ".join(event.message for event in events[-2:] if event.message)
