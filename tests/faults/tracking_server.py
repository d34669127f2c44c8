"""A real MLflow REST server on loopback, in a thread, which can be made to misbehave."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Start = Callable[..., Any]


class FaultyServer:
    """MLflow's own WSGI application behind a switch.

    `mode` is one of: up, 503, hang (answers after `hang_seconds`), 401, 403, lost (works, then loses the answer).
    `only` limits a fault to paths that contain it; `requests` counts what came in.
    """

    def __init__(self, backend_uri: str, artifact_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from mlflow.server import handlers
        from mlflow.tracking._model_registry import utils
        from werkzeug.serving import make_server

        monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", backend_uri)
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", artifact_root)
        for name in ("_tracking_store", "_model_registry_store"):
            monkeypatch.setattr(handlers, name, None)
        monkeypatch.setattr(utils, "_registry_uri", None)  # which a server sets for its whole process
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", "")
        monkeypatch.delenv("MLFLOW_REGISTRY_URI")
        from mlflow.server import app

        self.app = app
        self.mode, self.only, self.hang_seconds, self.requests = "up", "", 20.0, 0
        self._stop = threading.Event()
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        self.requests += 1
        faulty = self.mode != "up" and self.only in environ["PATH_INFO"]
        if not faulty:
            return self.app(environ, start)
        if self.mode == "hang":
            self._stop.wait(self.hang_seconds)
            status = "500 Late"
        elif self.mode == "lost":
            list(self.app(environ, lambda *_: lambda _: None))
            status = "500 Lost"
        else:
            status = {"503": "503 Down", "401": "401 Unauthorized", "403": "403 Forbidden"}[self.mode]
        start(status, [("Content-Type", "text/plain")])
        return [b"fault"]

    def close(self) -> None:
        """Stop serving; ends answers that hang."""
        self._stop.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def faulty_server(backend_uri: str, artifact_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A server for the length of a block."""
    server = FaultyServer(backend_uri, artifact_root, monkeypatch)
    try:
        yield server
    finally:
        server.close()
