"""A site whose runs are tracked by an MLflow server, which misbehaves, is killed and comes back."""

import os
import signal
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.campaign.faults import kind
from tests.campaign.passes import Pass, Reply
from tests.campaign.site import Site
from tests.orchestration.servers import listens, wait_for
from tests.ports import free_port


class ServedSite(Site):
    """As a folder, but MLflow's database stands behind a server in a process of its own."""

    where = "served"

    def __init__(self, folder: Path, kept: Path) -> None:
        super().__init__(folder, kept)
        self.port, self.pid = free_port(), 0

    @property
    def environment(self) -> Mapping[str, str]:
        """Names the server."""
        return {**super().environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.port}"}

    def reset(self, number: int) -> None:
        """With a new server over the database as it was then."""
        self.kill()
        super().reset(number)
        self.serve()

    def _first(self) -> None:
        super()._first()
        self.kill()
        self.serve()

    def kill(self, sign: int = signal.SIGKILL) -> None:
        """End the server."""
        if self.pid:
            os.kill(self.pid, sign)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def serve(self) -> None:
        """Start a server where none runs, and wait until it answers."""
        if self.pid:
            return
        lives, told = os.pipe()  # it ends with this process, which holds the other end
        self.pid = os.fork()
        if self.pid:
            os.close(lives)
            wait_for(lambda: listens(self.port), 60, "the tracking server")
            return
        try:
            os.close(told)
            _serve(self.port, f"sqlite:///{self.mlflow}", str(self.state / "mlflow" / "artifacts"), lives)
        finally:
            os._exit(1)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """As of a folder."""
        self.kill()
        yield
        self.serve()

    def write(self, name: str, content: bytes | None, changed: int | None = None) -> None:
        """As of a folder. A server would keep a database that is gone, for as long as it lives."""
        with self.stopped() if content is None and self.folder / name == self.mlflow else nullcontext():
            super().write(name, content, changed)

    def close(self) -> None:
        """As of a folder."""
        self.kill()

    def tell(self, mode: str) -> None:
        """Let the server be up, or misbehave."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_mode/{mode}", timeout=30).close()


def _serve(port: int, database: str, artifacts: str, lives: int) -> None:
    """In the server's process."""
    from werkzeug.serving import make_server

    from tests.faults.tracking_server import FaultyServer, Start

    class Server(FaultyServer):
        def _answer(self, environ: dict[str, Any], start: Start) -> Any:
            if environ["PATH_INFO"].startswith("/_mode/"):
                self.mode = environ["PATH_INFO"].removeprefix("/_mode/")
                start("200 OK", [])
                return [b""]
            return super()._answer(environ, start)

    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "werkzeug.serving.make_server", lambda host, _, *rest, **more: make_server(host, port, *rest, **more)
        )
        Server(database, artifacts, patch).hang_seconds = 5.0
        os.read(lives, 1)


def _modes(*modes: str) -> None:
    for mode in modes:

        @kind(f"tracking server: {mode}", where="served")
        def misbehave(site: Site, process: Pass, draw: Random, mode: str = mode) -> Iterator[Reply]:
            assert isinstance(site, ServedSite)
            if site.pid:
                site.tell(mode)
            yield {}
            if site.pid:
                site.tell("up")


_modes("401", "403", "503", "hang", "lost")


for _sign in (signal.SIGKILL, signal.SIGTERM):

    @kind(f"tracking server: {_sign.name}", where="served")
    def killed(site: Site, process: Pass, draw: Random, sign: int = _sign) -> Iterator[Reply]:
        """It is back after the pass."""
        assert isinstance(site, ServedSite)
        site.kill(sign)
        yield {}
        site.serve()
