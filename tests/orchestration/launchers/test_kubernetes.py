"""Runs and steps on Kubernetes, against a stand-in of its API: launch, success, failure, cancel, loss, resumption.

The launcher and the step executor are dagster-k8s's own; what is proven here is that the hints, the settings and the
resumable assets of this project work with them.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.orchestration.launchers.deployment import Deployment, deploy, wait_for
from tests.orchestration.launchers.kubernetes_api import KubernetesApi

pytestmark = [pytest.mark.cloud, pytest.mark.xdist_group("kubernetes")]
CANCELED, FAILURE, SUCCESS = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path_factory.mktemp("cluster")) as server:
        yield server


def run_launcher(api: KubernetesApi, executor: str) -> dict[str, Any]:
    return {
        "module": "dagster_k8s.launcher",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": False,
            "kubeconfig_file": str(api.kubeconfig()),
            "job_namespace": "yt8m",
            "service_account_name": "dagster",
            "instance_config_map": "dagster-instance",
            "dagster_home": "/opt/dagster/dagster_home",
            "job_image": "europe-west4-docker.pkg.dev/tiny-project/yt8m/cuda:1",
            "image_pull_policy": "IfNotPresent",
            "env_vars": [f"TINY_EXECUTOR={executor}", "TINY_HINTS=k8s"],
        },
    }


def deployed(api: KubernetesApi, home: Path, executor: str) -> Iterator[Deployment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_EXECUTOR", executor)
        patch.setenv("TINY_HINTS", "k8s")
        with deploy(home, run_launcher(api, executor)) as deployment:
            yield deployment


@pytest.fixture(scope="module")
def runs(api: KubernetesApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A pod for each run."""
    yield from deployed(api, tmp_path_factory.mktemp("runs"), "in_process")


@pytest.fixture(scope="module")
def steps(api: KubernetesApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A pod for each run, and one for each of its steps."""
    yield from deployed(api, tmp_path_factory.mktemp("steps"), "k8s")


def history(folder: Path) -> list[int]:
    """The numbers a run counted, in order."""
    path = folder / "history.txt"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


def step_pods(api: KubernetesApi, run_id: str, step: str) -> list[str]:
    """The jobs that carried a step of a run, first attempt first."""
    wanted = {"dagster/run-id": run_id, "dagster/op": step}
    return [name for name, item in api.manifests.items() if wanted.items() <= item["metadata"]["labels"].items()]


def test_a_lost_pod_is_replaced_and_its_run_goes_on_from_the_checkpoint(
    api: KubernetesApi, runs: Deployment, tmp_path: Path
):
    run_id = runs.launch("count", tmp_path, target=6, delay_seconds=0.5)
    wait_for(lambda: 2 in history(tmp_path))
    runs.monitor()
    assert f"dagster-run-{run_id}-1" not in api.manifests, "a healthy pod was replaced"
    api.lose_pod(f"dagster-run-{run_id}")
    runs.monitor()
    assert runs.wait(run_id) == SUCCESS
    assert f"dagster-run-{run_id}-1" in api.manifests
    assert sorted(set(history(tmp_path))) == [1, 2, 3, 4, 5, 6]
    assert len(history(tmp_path)) <= 7, "more than the interrupted number was counted again"


def test_a_gpu_step_gets_a_pod_as_its_hints_say_and_a_small_step_does_not(
    api: KubernetesApi, steps: Deployment, tmp_path: Path
):
    run_id = steps.launch("both", tmp_path)
    assert steps.wait(run_id) == SUCCESS
    assert history(tmp_path) == [1, 2, 3]
    assert (tmp_path / "history.txt").read_text().split()[1:3] == ["counted", "7"], "the step's own environment"
    pod = api.manifests[step_pods(api, run_id, "counted")[0]]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "26624Mi"}
    assert container["resources"]["requests"]["cpu"] == "7"
    assert container["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    assert pod["volumes"] == [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8192Mi"}}]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["serviceAccountName"] == "dagster"
    small = api.manifests[step_pods(api, run_id, "summed")[0]]["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in small["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in small


def test_a_failing_step_fails_its_run_once(api: KubernetesApi, steps: Deployment, tmp_path: Path):
    run_id = steps.launch("both", tmp_path, fail=True)
    assert steps.wait(run_id) == FAILURE
    assert len(step_pods(api, run_id, "counted")) == 1
    assert not step_pods(api, run_id, "summed")
    assert "told to fail" in steps.messages(run_id)


def test_canceling_a_run_takes_its_pods_away(api: KubernetesApi, steps: Deployment, tmp_path: Path):
    run_id = steps.launch("count", tmp_path, target=1000, delay_seconds=0.2)
    wait_for(lambda: history(tmp_path))
    assert steps.instance.run_launcher.terminate(run_id)
    assert steps.wait(run_id) == CANCELED
    (step,) = step_pods(api, run_id, "counted")
    wait_for(lambda: api.containers[step].exit_code is not None, what="the end of the step's pod")
    counted = len(history(tmp_path))
    time.sleep(1)
    assert len(history(tmp_path)) == counted
    assert f"dagster-run-{run_id}" not in api.jobs


def test_a_step_whose_pod_is_lost_is_tried_again_from_its_checkpoint(
    api: KubernetesApi, steps: Deployment, tmp_path: Path
):
    run_id = steps.launch("count", tmp_path, target=5, delay_seconds=0.5)
    wait_for(lambda: 2 in history(tmp_path))
    api.lose_pod(step_pods(api, run_id, "counted")[0])
    assert steps.wait(run_id) == SUCCESS
    assert len(step_pods(api, run_id, "counted")) == 2
    assert "Discovered failed Kubernetes job" in steps.messages(run_id)
    assert sorted(set(history(tmp_path))) == [1, 2, 3, 4, 5]
    assert len(history(tmp_path)) <= 6


def test_a_lost_run_pod_takes_its_step_along_and_both_are_replaced(
    api: KubernetesApi, steps: Deployment, tmp_path: Path
):
    run_id = steps.launch("both", tmp_path, target=12, delay_seconds=0.5)
    wait_for(lambda: 2 in history(tmp_path))
    api.lose_pod(f"dagster-run-{run_id}")
    steps.monitor()
    assert steps.wait(run_id) == SUCCESS
    assert sorted(set(history(tmp_path))) == list(range(1, 13))
    assert len(history(tmp_path)) <= 13, "more than the interrupted number was counted again"


def test_a_step_that_no_node_can_hold_fails_with_the_schedulers_reason(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Dagster calls a pending job healthy: without a limit of its own the run would wait for ever, and say nothing."""
    monkeypatch.setenv("TINY_PENDING_MINUTES", "0.02")
    monkeypatch.setattr(api, "unschedulable", True)
    launcher = run_launcher(api, "k8s")
    launcher["config"]["env_vars"].append("TINY_PENDING_MINUTES=0.02")
    monkeypatch.setenv("TINY_EXECUTOR", "k8s")
    with deploy(tmp_path / "full", launcher) as deployment:
        run_id = deployment.start("sum_up", {})
        assert deployment.wait(run_id) == FAILURE
        told = deployment.messages(run_id)
    assert "has not started after 0.02 minutes: 0/3 nodes are available: 3 Insufficient ephemeral-storage." in told
    assert "it asks for cpu 2, ephemeral-storage 60Gi, memory 4096Mi" in told
    assert not [name for name in step_pods(api, run_id, "summed") if name in api.jobs], "the job waits on"
