"""A small JSON server on loopback: routes are (method, pattern) -> function(match, query, body) -> (status, answer)."""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any]
NO_ANSWER = 0
"""A status that hangs up instead of answering."""
Route = Callable[[re.Match[str], dict[str, str], bytes], Answer]


class JsonServer:
    """Serves while its `with` block lasts. `requests` records (method, path) of every call."""

    def __init__(self) -> None:
        self.routes: list[tuple[str, re.Pattern[str], Route]] = []
        self.requests: list[tuple[str, str]] = []
        self.scripted: list[Answer] = []
        """Answers to give to the next calls before anything is looked at, such as (503, {...})."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: Any) -> None:
                """Keep the test's output quiet."""

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, answer = server.answer(self.command, self.path, body)
                if status == NO_ANSWER:  # the connection ends without a word, as when a machine on the way dies
                    self.close_connection = True
                    return
                text = isinstance(answer, str)
                content = answer.encode() if text else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _serve

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"127.0.0.1:{self._http.server_address[1]}"

    def route(self, method: str, pattern: str, function: Route) -> None:
        """Add a route; the pattern must match the whole path."""
        self.routes.append((method, re.compile(pattern), function))

    def answer(self, method: str, target: str, body: bytes) -> Answer:
        """The answer to one call; 404 as both services phrase it when no route matches."""
        parts = urlsplit(target)
        self.requests.append((method, parts.path))
        if self.scripted:
            return self.scripted.pop(0)
        for wanted, pattern, function in self.routes:
            match = pattern.fullmatch(parts.path)
            if match and wanted == method:
                return function(match, dict(parse_qsl(parts.query)), body)
        return 404, {"message": f"no route for {method} {parts.path}", "error": {"code": 404, "message": "no route"}}

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
