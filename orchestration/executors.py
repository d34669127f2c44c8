"""The executor that `YT8M_EXECUTOR` names, and how torch's threads are shared between steps on one machine."""

import os
from collections.abc import Callable, Iterator, MutableMapping
from importlib.util import find_spec
from typing import Any

import dagster as dg

from orchestration.cluster import DeploymentOptions
from orchestration.pools import PROCESS_TAG, process_mark
from orchestration.settings import EXECUTORS
from yt8m_assets.errors import ConfigError

THREADS_PER_STEP = 4
"""Threads below which a training step wastes more on waiting than a second step at the same time would win."""


def num_cpus() -> int:
    """CPUs this process may use (its affinity, not the machine's number)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_concurrency(cpus: int) -> int:
    """Steps at once on so many CPUs: one for every four, at most four."""
    return max(1, min(4, cpus // THREADS_PER_STEP))


def share_threads(environment: MutableMapping[str, str], cpus: int, num_steps: int) -> None:
    """Give each of the steps that run at once its share of the CPUs; what the user set stays.

    MKL's own variable would outdo the general one: where the user set only that, it holds for both.
    """
    general = environment.setdefault("OMP_NUM_THREADS", str(max(1, cpus // num_steps)))
    environment.setdefault("MKL_NUM_THREADS", general)


def executor_for(name: str, deployment: DeploymentOptions | None = None) -> dg.ExecutorDefinition:
    """The executor of a name: in_process, multiprocess, k8s (with the deployment's patience) or vertex.

    For k8s and vertex the run launcher belongs to the instance: see the examples in `orchestration/deploy/`.
    Raises ConfigError for another name, and for one whose extra is not installed.
    """
    if name == "in_process":
        return in_process_executor
    if name == "multiprocess":
        return multiprocess_executor
    if name == "k8s":
        _require("dagster_k8s", "k8s")
        return _k8s_executor((deployment or DeploymentOptions()).pending_minutes)
    if name == "vertex":
        _require("google.cloud.aiplatform_v1", "vertex")
        return vertex_executor
    raise ConfigError(f"YT8M_EXECUTOR = {name!r}: choose one of {', '.join(EXECUTORS)}")


def _require(module: str, extra: str) -> None:
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        found = False
    if not found:
        raise ConfigError(f"YT8M_EXECUTOR = {extra} needs {module}, which is not installed: pip install '.[{extra}]'")


class MarkedExecutor(dg.Executor):
    """An executor of this machine that writes down which process runs a run, so that its death can be noticed."""

    def __init__(self, inner: dg.Executor) -> None:
        self.inner = inner

    @property
    def retries(self) -> Any:
        """The inner executor's."""
        return self.inner.retries

    @property
    def step_dependency_config(self) -> Any:
        """The inner executor's."""
        return self.inner.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Mark the run, then what the inner executor does."""
        run_id = plan_context.run_id
        plan_context.instance.add_run_tags(run_id, {PROCESS_TAG: f"{run_id} {process_mark()}"})
        yield from self.inner.execute(plan_context, execution_plan)


def _around(
    inner: dg.ExecutorDefinition, finish: Callable[[dg.InitExecutorContext, Any], Any], name: str, description: str
) -> dg.ExecutorDefinition:
    """One of Dagster's executors, its settings included, with what `finish` makes of it when a run begins."""

    def create(context: dg.InitExecutorContext) -> Any:
        assert inner.executor_creation_fn is not None
        return finish(context, inner.executor_creation_fn(context))

    schema = inner.config_schema.as_field()
    return dg.ExecutorDefinition(name, schema, inner.get_requirements, create, description)


in_process_executor = _around(
    dg.in_process_executor,
    lambda _, executor: MarkedExecutor(executor),
    "in_process",
    "The steps of a run one after another in its own process.",
)


def _share_machine(context: dg.InitExecutorContext, executor: dg.Executor) -> dg.Executor:
    # Step processes inherit the environment of the run's process, which is this one.
    steps: Any = context.executor_config["max_concurrent"]
    share_threads(os.environ, num_cpus(), steps)
    return MarkedExecutor(executor)


multiprocess_executor = _around(
    dg.multiprocess_executor,
    _share_machine,
    "multiprocess",
    "A process for each step; as many at once, and threads for each, as the CPUs allow.",
).configured(
    lambda config: {**config, "max_concurrent": config["max_concurrent"] or default_concurrency(num_cpus())},
    config_schema=dg.multiprocess_executor.config_schema.as_field(),
)


def _k8s_executor(pending_minutes: float) -> dg.ExecutorDefinition:
    from dagster_k8s import k8s_job_executor

    from orchestration.launchers.pending import PendingLimit

    def limit_wait(_: dg.InitExecutorContext, executor: Any) -> Any:
        executor._step_handler = PendingLimit(executor._step_handler, pending_minutes * 60)
        return executor

    # Where runs may be resumed, Dagster passes no cancellation on to the steps' pods, and a GPU pod would go on to
    # its end. As property of the run's pod they are taken away with it.
    return _around(
        k8s_job_executor,
        limit_wait,
        "k8s",
        "A Kubernetes pod for each step, with the resources of its asset; gone when the run's pod is.",
    ).configured(
        lambda config: {**config, "enable_owner_references": True},
        config_schema=k8s_job_executor.config_schema.as_field(),
    )


def _require_vertex(context: dg.InitExecutorContext, executor: dg.Executor) -> dg.Executor:
    from orchestration.launchers.vertex import VertexAIRunLauncher

    launcher = context.instance.run_launcher
    if not isinstance(launcher, VertexAIRunLauncher):
        raise ConfigError(
            f"YT8M_EXECUTOR = vertex, but the instance's run launcher is {type(launcher).__name__}: the run would stay "
            "on this machine. Use the run_launcher of orchestration/deploy/dagster-vertex.yaml in dagster.yaml"
        )
    return executor


vertex_executor = _around(
    dg.in_process_executor,
    _require_vertex,
    "vertex",
    "The steps of a run one after another on the run's own Vertex AI machine.",
)
