"""The examples of deploy/: valid by Dagster's and Kubernetes' own schemas, and closed to the outside (F47)."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema

import orchestration
from orchestration.executors import EXECUTORS

DEPLOY = Path(orchestration.__file__).parent / "deploy"
INSTANCES = ("dagster-postgres.yaml", "dagster-vertex.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def valid(schema: Any, value: Any) -> None:
    result = validate_config(schema, value)
    assert result.success, [error.message for error in result.errors or []]


@pytest.mark.parametrize("name", INSTANCES)
def test_an_instance_file_is_valid_by_dagsters_schema(name: str):
    instance = load(name)
    valid(dagster_instance_config_schema(), instance)
    assert instance["telemetry"]["enabled"] is False
    assert instance["run_monitoring"]["enabled"] is True
    assert instance["storage"]["postgres"]["postgres_db"].get("password") in (None, {"env": "DAGSTER_PG_PASSWORD"})


def test_every_example_names_the_driver_that_dagster_postgres_is_written_for():
    """Without a name, SQLAlchemy 2.1 takes psycopg 3, with which dagster-postgres cannot write an event."""
    schemes = {name: load(name)["storage"]["postgres"]["postgres_db"]["scheme"] for name in INSTANCES}
    schemes["helm-values.yaml"] = load("helm-values.yaml")["postgresql"]["postgresqlScheme"]
    assert set(schemes.values()) == {"postgresql+psycopg2"}, schemes


def test_the_vertex_launchers_settings_are_its_own(monkeypatch: pytest.MonkeyPatch):
    launcher = load("dagster-vertex.yaml")["run_launcher"]
    chosen = getattr(import_module(launcher["module"]), launcher["class"])
    valid(chosen.config_type(), launcher["config"])
    wrong = validate_config(chosen.config_type(), launcher["config"] | {"machine": "big"})
    assert not wrong.success
    assert load("dagster-vertex.yaml")["run_monitoring"]["max_resume_run_attempts"] > 0


def test_helm_values_run_this_projects_definitions_with_a_known_executor():
    values = load("helm-values.yaml")
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    module = deployment["dagsterApiGrpcArgs"][1]
    assert (DEPLOY.parents[1] / Path(*module.split("."))).with_suffix(".py").is_file()
    env = {item["name"]: item["value"] for item in deployment["env"]}
    assert env["YT8M_EXECUTOR"] in EXECUTORS
    assert values["dagsterDaemon"]["runMonitoring"]["maxResumeRunAttempts"] > 0
    assert values["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    assert "ingress" not in values


def assert_model(value: Any, kind: str, where: str) -> None:
    """Every field of a manifest exists in the Kubernetes client's model of its kind."""
    if kind.startswith("list["):
        for number, item in enumerate(value):
            assert_model(item, kind[5:-1], f"{where}[{number}]")
    elif hasattr(kubernetes.client, kind):
        model = getattr(kubernetes.client, kind)
        fields = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in fields, f"{where}.{name} is no field of {kind}"
            assert_model(item, fields[name], f"{where}.{name}")


def test_mlflow_manifests_are_valid_and_internal():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes-mlflow.yaml").read_text()))
    deployment, service = documents
    assert_model(deployment, "V1Deployment", "deployment")
    assert_model(service, "V1Service", "service")
    assert service["spec"]["type"] == "ClusterIP"
    with pytest.raises(AssertionError, match="replica is no field of V1DeploymentSpec"):
        assert_model({"spec": {"replica": 1}}, "V1Deployment", "deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert any(item.startswith("--allowed-hosts=") for item in container["args"])
    assert "--allowed-hosts=*" not in container["args"]


def test_f47_the_proxy_asks_for_a_login_and_only_knows_loopback():
    text = re.sub(r"#.*", "", (DEPLOY / "proxy-nginx.conf").read_text())
    servers = re.split(r"\nserver \{", text)[1:]
    assert len(servers) == 3
    for server in servers:
        assert re.search(r"listen 443 ssl", server), "no plain HTTP"
        if "proxy_pass" in server:
            assert "auth_basic_user_file" in server
            assert re.search(r"proxy_pass http://127\.0\.0\.1:\d+;", server)
            assert 'proxy_set_header Authorization "";' in server, "the password goes no further"
        else:
            assert "return 421;" in server


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_f47_no_example_opens_a_service_to_the_outside_or_holds_a_secret(path: Path):
    text = path.read_text()
    assert not re.search(r"type:\s*(LoadBalancer|NodePort)", text)
    assert not re.search(r"(?i)password:\s*['\"]?[a-z0-9]", text)
    wide = [line for line in text.splitlines() if "0.0.0.0" in line and not line.lstrip().startswith("#")]
    assert path.name == "kubernetes-mlflow.yaml" or not wide, (
        "a server that listens everywhere has a cluster-internal service"
    )


def test_the_image_has_both_targets_and_no_root():
    text = (DEPLOY / "Dockerfile").read_text()
    assert {"cpu", "cuda"} <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.M))
    assert text.count("USER 1000") == 2
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M) for name in line.split()}
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept, "what is copied is what the build context holds"
