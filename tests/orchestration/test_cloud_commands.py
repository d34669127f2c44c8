"""The shell commands of docs/cloud.md, run as typed, with stand-ins of the tools that note what they get."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "orchestration" / "deploy"
FLAGS = json.loads((ROOT / "tests" / "golden" / "gcp" / "command_flags.json").read_text())["flags"]
TOOLS = ("gcloud", "kubectl", "helm", "docker", "git", "hostname", "sudo", "python3", "pip")
SERVERS = ("dagster-daemon", "dagster-webserver", "mlflow")
NOTE = """#!{python}
import json, os, sys
said = {{name: value for name, value in os.environ.items() if name.startswith(("YT8M_", "DAGSTER_", "MLFLOW_"))}}
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([[os.path.basename(sys.argv[0]), *sys.argv[1:]], said]) + "\\n")
answers = {{"instances describe": "10.0.0.3", "projects describe": "123", "rev-parse": "0123abc"}}
answers["hostname -I"] = "10.1.0.2 "
line = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
print(*[answer for words, answer in answers.items() if words in line])
"""


@dataclass(frozen=True)
class Session:
    """What typing the page's commands did."""

    calls: list[list[str]]
    environments: dict[str, dict[str, str]]
    home: Path

    def of(self, *words: str) -> list[list[str]]:
        """The calls that begin so."""
        return [call for call in self.calls if call[: len(words)] == list(words)]


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def blocks(language: str) -> list[str]:
    """The page's blocks of shell commands."""
    text = (ROOT / "docs" / "cloud.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def type_in(script: str, folder: Path, **values: str) -> Session:
    """Run commands in one shell that ends at the first error, in a copy of the checkout."""
    tools, checkout, home = folder / "bin", folder / "checkout", folder / "home"
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / "bin" / "activate").touch()
    tools.mkdir()
    shutil.copytree(DEPLOY, checkout / "orchestration" / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.lock", checkout)
    for name in (*TOOLS, *SERVERS):
        (tools / name).write_text(NOTE.format(python=sys.executable))
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "NOTES": str(folder / "notes"), "HOME": str(home), **values}
    before = files_of(checkout)
    subprocess.run(["bash", "-euo", "pipefail", "-c", script + "\nwait\n"], cwd=checkout, env=environment, check=True)
    assert files_of(checkout) == before, "something of the deployment, perhaps a password, lies in the checkout"
    noted = [json.loads(line) for line in (folder / "notes").read_text().splitlines()]
    return Session([call for call, _ in noted], {call[0]: said for call, said in noted}, home)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Every bash block of the page, in order."""
    return type_in("\n".join(blocks("bash")), tmp_path_factory.mktemp("cloud"))


def wrong_flags(calls: list[list[str]]) -> list[str]:
    """Flags that a tool does not have, by the tools' own lists."""
    wrong = []
    for call in calls:
        if call[0] not in ("gcloud", "kubectl", "helm", "docker"):
            continue
        words = [word for word in call if word not in ("-n", "yt8m")]
        name = max((name for name in FLAGS if words[: len(name.split())] == name.split()), key=len)
        if len(name.split()) == 1:
            wrong.append(f"no list of flags for: {' '.join(call[:6])}")
        known = {*FLAGS[name], *FLAGS.get(call[0], [])}
        own = call[: call.index("--")] if "--" in call else call
        for flag in (word.split("=")[0] for word in own if word.startswith("--")):
            if flag not in known and flag.replace("--no-", "--") not in known:
                wrong.append(f"{name} {flag}")
    return wrong


def test_every_command_has_the_flags_of_its_tool(session: Session):
    assert not wrong_flags(session.calls)
    assert len(session.calls) > 60


def test_cloud_build_makes_the_images_that_docker_would(session: Session, tmp_path: Path):
    """The other way of the page: its file is a build of Cloud Build's own type, and gives docker the same arguments."""
    from google.cloud.devtools import cloudbuild_v1
    from google.protobuf import json_format

    (script,) = [block for block in blocks("sh") if "builds submit" in block]
    typed = type_in(script, tmp_path, REGION="us-east1", PROJECT="my-project")
    assert not wrong_flags(typed.calls)
    expected = [call[2:] for call in session.of("docker", "build")]
    made = []
    for call in typed.of("gcloud", "builds", "submit"):
        asked = dict(pair.split("=", 1) for pair in call[call.index("--substitutions") + 1].split(","))
        build = cloudbuild_v1.Build()
        text = (tmp_path / "checkout" / call[call.index("--config") + 1]).read_text()
        json_format.ParseDict(yaml.safe_load(text), cloudbuild_v1.Build.pb(build))
        values = {**build.substitutions, **asked}
        (step,) = build.steps
        fill = lambda word, values=values: re.sub(r"\$(_\w+)", lambda found: values[found[1]], word)  # noqa: E731
        assert (step.args[0], list(step.env)) == ("build", ["DOCKER_BUILDKIT=1"])
        assert call[-1] == "."
        assert [fill(image) for image in build.images] == [asked["_IMAGE"]]
        made.append({fill(word) for word in step.args[1:]})
    long_names = {"-f": "--file", "-t": "--tag"}
    for arguments, found in zip(expected, made, strict=True):
        words, wanted = iter(arguments), set()
        for word in words:
            wanted.add(word if word == "." else f"{long_names.get(word, word)}={next(words)}")
        assert found == wanted - {"--platform=linux/amd64"}  # what its machines are


def test_no_argument_is_empty_or_a_placeholder(session: Session):
    text = [word for call in session.calls for word in call]
    assert all(text), "a variable was not set"
    assert not [word for word in text if re.search(r"PROJECT|REGION|BUCKET|ADDRESS|\$", word)]


def test_the_database_takes_the_password_that_the_secret_holds_and_no_file_keeps_it(session: Session):
    (user,) = session.of("gcloud", "sql", "users", "create", "mlflow")
    password = user[user.index("--password") + 1]
    assert re.fullmatch("[0-9a-f]{48}", password), "a newline is no part of it"
    (secret,) = [call for call in session.calls if "secret" in call]
    assert secret[-1] == f"--from-literal=uri=postgresql://mlflow:{password}@10.0.0.3:5432/mlflow"
    assert session.environments["mlflow"]["MLFLOW_BACKEND_STORE_URI"] in secret[-1]
    assert not [name for name, text in files_of(session.home).items() if password in text]


def test_dagster_has_no_password_anywhere(session: Session):
    accounts = session.of("gcloud", "sql", "users", "create", "yt8m-dagster@my-project.iam")
    assert [call[-1] for call in accounts] == ["cloud_iam_service_account"]
    (instance,) = session.of("gcloud", "sql", "instances", "create")
    assert "cloudsql.iam_authentication=on" in instance
    roles = {call[call.index("--role") + 1] for call in session.of("gcloud", "projects", "add-iam-policy-binding")}
    assert {"roles/cloudsql.client", "roles/cloudsql.instanceUser"} <= roles
    assert not [name for name, said in session.environments.items() if "DAGSTER_PG_PASSWORD" in said]


def test_nodes_may_pull_the_images(session: Session):
    """New projects' default account may not."""
    made = [*session.of("gcloud", "container", "clusters", "create"), *session.of("gcloud", "container", "node-pools")]
    (account,) = {call[call.index("--service-account") + 1] for call in made}
    granted = session.of("gcloud", "projects", "add-iam-policy-binding")
    roles = {call[call.index("--role") + 1] for call in granted if f"serviceAccount:{account}" in call}
    assert "roles/artifactregistry.reader" in roles


def test_what_is_applied_holds_the_names_of_the_project(session: Session):
    made = files_of(session.home / "yt8m")
    assert set(made) == {"kubernetes-base.yaml", "helm-values.yaml", "kubernetes-mlflow.yaml"}
    for name, text in made.items():
        assert not re.search(r"PROJECT|REGION|BUCKET|DATABASE_ADDRESS", text), name
        assert list(yaml.safe_load_all(text))
    values = yaml.safe_load(made["helm-values.yaml"])
    assert values["postgresql"]["postgresqlHost"] == "10.0.0.3"
    assert values["postgresql"]["postgresqlUsername"] == "yt8m-dagster@my-project.iam"
    applied = {word for call in session.calls if call[0] in ("kubectl", "helm") for word in call if "yaml" in word}
    assert applied == {str(session.home / "yt8m" / name) for name in made}


def test_each_pod_may_act_as_its_account_and_forwards_wait_until_pods_run(session: Session):
    bound = {call[-1] for call in session.calls if "roles/iam.workloadIdentityUser" in call}
    names = ("dagster", "dagster-code", "yt8m-steps", "mlflow")
    assert bound == {f"serviceAccount:my-project.svc.id.goog[yt8m/{name}]" for name in names}
    order = [" ".join(call) for call in session.calls]
    first = min(number for number, line in enumerate(order) if "port-forward" in line)
    assert any("helm upgrade" in line and "--wait" in line for line in order[:first])
    assert any("rollout status deployment/mlflow" in line for line in order[:first])


def test_a_spot_pool_exists_for_spot_steps_with_the_machine_of_the_others(session: Session):
    pools = {call[4]: call for call in session.of("gcloud", "container", "node-pools", "create")}
    assert "--spot" in pools["l4-spot"]
    assert set(pools["l4"]) - {"l4"} <= set(pools["l4-spot"])


def names_read(value: Any) -> set[str]:
    """The environment variables that a dagster.yaml reads."""
    if isinstance(value, dict):
        return {value["env"]} if set(value) == {"env"} else set().union(*map(names_read, value.values()))
    return set().union(*map(names_read, value)) if isinstance(value, list) else set()


def test_the_server_of_vertex_jobs_has_every_variable_that_its_dagster_yaml_reads(session: Session):
    example = yaml.safe_load((session.home / "dagster" / "dagster.yaml").read_text())
    handed_on = {word for word in example["run_launcher"]["config"]["env_vars"] if "=" not in word}
    for server in ("dagster-daemon", "dagster-webserver"):
        said = session.environments[server]
        assert names_read(example) | handed_on <= set(said)
        assert said["DAGSTER_HOME"] == str(session.home / "dagster")
    (server,) = session.of("mlflow", "server")
    assert server[server.index("--host") + 1] == "10.1.0.2", "jobs reach it, and it listens on that address only"
