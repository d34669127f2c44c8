"""The secrets of a machine, through the whole graph and its failures: in nothing that is written, shown or run."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.faults.tracking_server import FaultyServer, faulty_server
from tests.storage.fake_store import FakeStore

ROOT = Path(__file__).parents[2]
PASSWORD, TOKEN, TOLD = "canary-mlflow-7731", "canary-bucket-4412-", "SECRET-TOKEN"
"""Of the tracking server, of the bucket, and what the bucket's own messages of errors hold."""
RECIPE = """
import sys
sys.path.insert(0, {root!r})
import gcsfs.core
gcsfs.core._location = lambda mtls: {bucket!r}
from tests.tiny import tiny_recipe
RECIPE = tiny_recipe().with_models(("one",))
"""


class Machine:
    """Runs `yt8m ...` as a person would, with secrets in the environment, and keeps all that it says and is."""

    def __init__(self, folder: Path, bucket: FakeStore, server: FaultyServer) -> None:
        self.folder, self.bucket, self.server = folder, bucket, server
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        form = serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
        account = {"type": "service_account", "client_email": "me@project.iam", "private_key": pem, "project_id": "p"}
        (folder / "secrets").mkdir()
        path = folder / "secrets" / "account.json"
        path.write_text(json.dumps(account | {"token_uri": f"{bucket.url}/token", "private_key_id": "1"}))
        (folder / "recipe.py").write_text(RECIPE.format(root=str(ROOT), bucket=bucket.url))
        login = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        self.secrets = (PASSWORD, login, TOKEN, TOLD, pem.splitlines()[5])
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in ("DAGSTER_HOME", "STORAGE_EMULATOR_HOST")
            },
            "YT8M_STATE": str(folder / "state"),
            "YT8M_STORAGE": "gs://bucket/graph",
            "YT8M_RECIPE": str(folder / "recipe.py"),
            "MLFLOW_TRACKING_URI": server.uri.replace("http://", f"http://user:{PASSWORD}@"),
            "GOOGLE_APPLICATION_CREDENTIALS": str(path),
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self.said: list[str] = []
        self.commands: set[str] = set()

    def run(self, *arguments: str) -> int:
        command = [sys.executable, "-m", "orchestration.cli", *arguments]
        output = self.folder / "output"
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=file, stderr=file)
            while process.poll() is None:
                try:
                    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                    self.commands |= {" ".join(member.cmdline()) for member in family}
                except psutil.Error:
                    pass
                time.sleep(0.1)
        self.said.append(output.read_text())
        output.unlink()
        return process.returncode

    def places(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of everything that a run leaves anywhere."""
        yield from ((f"output {number}", text.encode()) for number, text in enumerate(self.said))
        yield from (("arguments", command.encode()) for command in self.commands)
        yield from self.bucket.objects.items()
        for path in self.folder.rglob("*"):
            if path.is_file() and path.parent.name != "secrets":
                yield str(path), path.read_bytes()

    def leaks(self) -> list[str]:
        return [
            f"{secret} in {name}"
            for name, content in self.places()
            for secret in self.secrets
            if secret.encode() in content
        ]


@pytest.fixture
def machine(tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    bucket = FakeStore()
    bucket.tokens, bucket.token_name = set(), TOKEN
    try:
        with faulty_server(mlflow_uri, str(tmp_path / "files"), monkeypatch) as server:
            yield Machine(tmp_path, bucket, server)
    finally:
        bucket.close()


def damage(objects: dict[str, bytes], ending: str) -> Mapping[str, bytes]:
    """Flip a bit of what ends so; what there was before."""
    before = {name: content for name, content in objects.items() if name.endswith(ending)}
    assert before
    objects |= {name: content[:-1] + bytes([content[-1] ^ 1]) for name, content in before.items()}
    return before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_secret_is_found_in_anything_that_a_graph_and_its_failures_leave(machine: Machine) -> None:
    bucket, server = machine.bucket, machine.server
    bucket.always = 403
    assert machine.run("materialize") != 0
    assert "storage.objects" in machine.said[-1]
    bucket.always, bucket.token_faults, server.mode = None, [400] * 2, "401"
    assert machine.run("materialize", "--until", "pretrained_model") == 0, machine.said[-1]
    assert "credentials" in machine.said[-1]
    server.mode = "up"
    sound = damage(bucket.objects, "weights.safetensors")
    for debug in ((), ("--debug",)):
        assert machine.run("materialize", *debug) != 0
        assert "sha256" in machine.said[-1]
    bucket.objects |= sound
    assert machine.run("materialize") == 0, machine.said[-1]
    assert machine.run("sync-mlflow") == 0, machine.said[-1]
    for mode in ("401", "503"):
        server.mode = mode
        for debug in ((), ("--debug",)):
            assert machine.run("sync-mlflow", *debug) != 0
    for command in ("status", "verify", "doctor"):
        machine.run(command)
    assert len({name for name, _ in machine.places() if name.endswith(".db")}) >= 3, "databases are looked through, too"
    assert machine.leaks() == []
