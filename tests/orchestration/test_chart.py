"""The Kubernetes example as an instance and as pods: loaded by Dagster, admitted as restricted, placeable."""

from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes.client
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job

from orchestration.cluster import read_deployment
from orchestration.hints import resource_hints, step_tags
from tests.orchestration.gke_nodes import documented_nodes, misfits
from tests.orchestration.launchers.kubernetes_api import KubernetesApi, schema_errors
from tests.orchestration.test_deploy import DEPLOY, assert_model, load

VALUES: dict[str, Any] = load("helm-values.yaml")
(CODE,) = VALUES["dagster-user-deployments"]["deployments"]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
ENV = {item["name"]: item["value"] for item in CODE["env"]}
SERVERS = {"webserver": VALUES["dagsterWebserver"], "daemon": VALUES["dagsterDaemon"], "code": CODE}


def snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def rendered_instance(kubeconfig: Path) -> dict[str, Any]:
    """The chart's dagster.yaml for these values, but for storage and cluster: its templates copy them, snake-cased."""
    daemon, logs = VALUES["dagsterDaemon"], VALUES["computeLogManager"]["config"]["customComputeLogManager"]
    assert VALUES["computeLogManager"]["type"] == "CustomComputeLogManager"
    launcher = {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "service_account_name": VALUES["serviceAccount"]["name"],
        "instance_config_map": "dagster-instance",
        "dagster_home": "/opt/dagster/dagster_home",
        "job_image": "image:1",
        "run_k8s_config": {snake(name): value for name, value in LAUNCHER.items()},
    }
    return {
        "run_launcher": {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": launcher},
        "run_monitoring": {snake(name): value for name, value in daemon["runMonitoring"].items()},
        "run_retries": {snake(name): value for name, value in daemon["runRetries"].items()},
        "concurrency": {
            part: {snake(name): value for name, value in VALUES["concurrency"][part].items()}
            for part in ("pools", "runs")
        },
        "compute_logs": logs,
        "python_logs": {"managed_python_loggers": VALUES["pythonLogs"]["managedPythonLoggers"]},
        "telemetry": VALUES["telemetry"],
    }


def test_the_instance_has_the_guard_rails_of_the_other_examples(tmp_path: Path):
    with KubernetesApi(tmp_path) as cluster:
        instance = rendered_instance(cluster.kubeconfig())
    result = validate_config(dagster_instance_config_schema(), instance)
    assert result.success, [error.message for error in result.errors or []]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance))
    with dg.DagsterInstance.from_config(str(tmp_path)) as loaded:
        assert loaded.run_monitoring_enabled
        assert loaded.run_monitoring_max_resume_run_attempts == 3
        assert loaded.managed_python_loggers == ["models", "yt8m_assets"]
        assert loaded.get_concurrency_config().run_queue_config.max_concurrent_runs == 8
        assert loaded.get_concurrency_config().pool_config.default_pool_limit == 4
        assert type(loaded.compute_log_manager).__name__ == "BucketComputeLogManager"
    for example in (instance, load("dagster-postgres.yaml"), load("dagster-vertex.yaml")):
        assert example["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
        assert example["run_monitoring"]["max_runtime_seconds"] > 0
        assert example["concurrency"]["runs"]["max_concurrent_runs"] > 0
        assert example["concurrency"]["pools"]["default_limit"] > 0
        assert example["python_logs"] == {"managed_python_loggers": ["models", "yt8m_assets"]}
    queued = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queued["maxConcurrentRuns"] is None, "the chart refuses the limit in two places"


def test_links_lead_to_where_docs_forward_mlflow():
    text = (DEPLOY.parents[1] / "docs" / "cloud.md").read_text()
    assert "port-forward service/mlflow 5000:5000" in text
    assert ENV["YT8M_MLFLOW_UI_URL"] == "http://127.0.0.1:5000"
    assert "port-forward service/dagster-dagster-webserver 3000:3000" in text


def context_of_code() -> K8sContainerContext:
    """What the chart hands to each run and step of the code location (`includeConfigInLaunchedRuns`)."""
    assert CODE["includeConfigInLaunchedRuns"]["enabled"]
    handed_on = {snake(name): CODE[name] for name in ("volumeMounts", "volumes", "resources", "env")}
    account = VALUES["dagster-user-deployments"]["serviceAccount"]["name"]
    token = {"pod_spec_config": {"automount_service_account_token": True}}
    own = {"service_account_name": account, "namespace": "yt8m", "run_k8s_config": token}
    return K8sContainerContext.create_from_config({"k8s": {**handed_on, **own}})


def pod_of(step: str | None) -> dict[str, Any]:
    """The pod that dagster-k8s makes of a run (None) or of a step, of launcher, code location and hints."""
    context = K8sContainerContext(
        run_k8s_config=UserDefinedDagsterK8sConfig.from_dict({snake(name): value for name, value in LAUNCHER.items()})
    ).merge(context_of_code())
    if step:
        tags = step_tags("k8s", resource_hints(), read_deployment(ENV["YT8M_DEPLOYMENT"]))(step)["dagster-k8s/config"]
        context = context.merge(K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(tags)))
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(
            job_image="image:1",
            dagster_home="/opt/dagster/dagster_home",
            postgres_password_secret=VALUES["global"]["postgresqlSecretName"],
        ),
        args=["dagster"],
        job_name="job",
        user_defined_k8s_config=context.run_k8s_config,
    )
    manifest = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    assert schema_errors(manifest) == []
    return dict(manifest["spec"]["template"]["spec"])


def refusals(pod: dict[str, Any]) -> set[str]:
    """What the restricted pod security standard refuses."""
    found, own = set(), pod.get("securityContext") or {}
    for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
        inner = container.get("securityContext") or {}
        if not inner.get("runAsNonRoot", own.get("runAsNonRoot")):
            found.add("runAsNonRoot")
        if inner.get("allowPrivilegeEscalation") is not False:
            found.add("allowPrivilegeEscalation")
        if "ALL" not in ((inner.get("capabilities") or {}).get("drop") or []):
            found.add("capabilities")
        if (inner.get("seccompProfile") or own.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
            found.add("seccompProfile")
    kinds = {kind for volume in pod.get("volumes") or [] for kind in volume if kind != "name"}
    return found | (kinds - {"configMap", "emptyDir", "secret", "projected", "downwardAPI", "persistentVolumeClaim"})


def mlflow() -> dict[str, Any]:
    deployment = next(iter(yaml.safe_load_all((DEPLOY / "kubernetes-mlflow.yaml").read_text())))
    return dict(deployment["spec"]["template"]["spec"])


def server(name: str) -> dict[str, Any]:
    values = SERVERS[name]
    container = {"securityContext": values["securityContext"], "resources": values["resources"]}
    return {"securityContext": values["podSecurityContext"], "volumes": values["volumes"], "containers": [container]}


PODS = {"run": pod_of(None), "mlflow": mlflow()} | {name: server(name) for name in SERVERS}
PODS |= {f"step {step}": pod_of(step) for step in resource_hints()}


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_admitted_by_the_restricted_standard(name: str):
    assert refusals(PODS[name]) == set()
    assert refusals({"containers": [{}]}) >= {"runAsNonRoot", "seccompProfile"}


@pytest.mark.parametrize("name", PODS)
def test_every_container_has_requests_and_a_memory_limit(name: str):
    for container in PODS[name]["containers"]:
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", [name for name in PODS if name.startswith(("step", "run", "mlflow"))])
def test_a_read_only_root_has_what_is_written_to(name: str):
    (container,) = PODS[name]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    assert "/tmp" in mounts
    assert set(mounts.values()) <= {volume["name"] for volume in PODS[name]["volumes"]}
    if name != "mlflow":
        assert "/var/lib/yt8m" in mounts


@pytest.mark.parametrize("name", PODS)
def test_no_pod_names_a_volume_a_mount_or_a_variable_twice(name: str):
    """Launcher and code location both give volumes; what differs between them would be there twice, and be refused."""
    (container,) = PODS[name]["containers"]
    for kind, items in (("volumes", PODS[name]["volumes"]), ("env", container.get("env", []))):
        names = [item["name"] for item in items]
        assert len(names) == len(set(names)), (kind, names)
    paths = [item["mountPath"] for item in container.get("volumeMounts", [])]
    assert len(paths) == len(set(paths)), paths


def asked_secrets(pod: dict[str, Any]) -> set[str]:
    sources = [item.get("valueFrom", {}) for container in pod["containers"] for item in container.get("env", [])]
    return {source["secretKeyRef"]["name"] for source in sources if "secretKeyRef" in source}


def test_every_secret_that_a_pod_asks_for_is_made_and_dagsters_holds_nothing():
    """The chart lets runs and steps ask for the database's password also where there is none."""
    made = {item["metadata"]["name"]: item["stringData"] for item in documents() if item["kind"] == "Secret"}
    assert made == {"dagster-postgresql": {"postgresql-password": ""}}
    asked = set().union(*map(asked_secrets, PODS.values()))
    text = (DEPLOY.parents[1] / "docs" / "cloud.md").read_text()
    typed = {name for name in asked if f"create secret generic {name}" in text}
    assert asked == {"dagster-postgresql", "mlflow-database"}
    assert asked - typed == set(made)


def test_servers_and_as_many_runs_as_may_run_fit_the_pool_that_is_always_on():
    limit = VALUES["concurrency"]["runs"]["maxConcurrentRuns"]
    always = [container for name in ("webserver", "daemon", "code", "mlflow") for container in PODS[name]["containers"]]
    together = {"containers": always + PODS["run"]["containers"] * limit}
    (node,) = [node for node in documented_nodes() if node.pool == "yt8m"]
    assert misfits(together, node) == []


def test_steps_and_servers_have_accounts_of_their_own_and_steps_ask_kubernetes_for_nothing():
    accounts = [item for item in documents() if item["kind"] == "ServiceAccount"]
    assert {item["metadata"]["name"] for item in accounts} == {"yt8m-steps", "mlflow"}
    for step in resource_hints():
        assert PODS[f"step {step}"]["serviceAccountName"] == "yt8m-steps"
        assert PODS[f"step {step}"]["automountServiceAccountToken"] is False
    assert PODS["mlflow"]["serviceAccountName"] == "mlflow"
    own = {VALUES["serviceAccount"]["name"], VALUES["dagster-user-deployments"]["serviceAccount"]["name"]}
    assert len(own | {"yt8m-steps", "mlflow"}) == 4
    assert "serviceAccountName" not in VALUES["global"], "it would give one account to all"


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes-base.yaml").read_text()))


def test_the_namespace_is_closed_and_restricted():
    kinds = {"Namespace": "V1Namespace", "ServiceAccount": "V1ServiceAccount", "NetworkPolicy": "V1NetworkPolicy"}
    kinds["Secret"] = "V1Secret"
    for item in documents():
        assert_model(item, kinds[item["kind"]], item["metadata"]["name"])
    (namespace,) = [item for item in documents() if item["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    policies = {item["metadata"]["name"]: item["spec"] for item in documents() if item["kind"] == "NetworkPolicy"}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert policies["code-location"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": CODE["port"]}]
    (wanted,) = policies["mlflow"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"]
    assert wanted["values"] == ["run_worker", "step_worker"], "what dagster-k8s labels its pods with"


def test_the_webserver_listens_where_a_user_may():
    service, probes = SERVERS["webserver"]["service"], ("readinessProbe", "livenessProbe")
    assert service["port"] == 3000
    assert {SERVERS["webserver"][probe]["httpGet"]["port"] for probe in probes} == {3000}
