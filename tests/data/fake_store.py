"""A stand-in for Google Cloud Storage on loopback that misbehaves as told."""

import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crc32c import crc32c


class FakeStore:
    """Objects in memory, and a list of faults: each request takes the next one (None: behave).

    A fault is a status (int), "reset", "hang", "truncate", "corrupt", or a function of the handler.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: list[Any] = []
        self.always: Any = None
        self.only: Callable[[str, str], bool] = lambda method, path: True
        self.requests: list[tuple[str, str]] = []
        self.hang_seconds = 3.0
        self.page_size = 1000
        self._lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                store.handle(self, "GET")

            def do_POST(self) -> None:
                store.handle(self, "POST")

            def do_DELETE(self) -> None:
                store.handle(self, "DELETE")

            def log_message(self, *args: Any) -> None:
                """Silence."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hung up is part of the test."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def put(self, name: str, content: bytes) -> str:
        """Store bucket/name; returns its URI."""
        self.objects[name] = content
        return f"gs://{name}"

    def handle(self, handler: Any, method: str) -> None:
        """Answer a request, or misbehave."""
        parsed = urllib.parse.urlsplit(handler.path)
        path, query = urllib.parse.unquote(parsed.path), urllib.parse.parse_qs(parsed.query)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self.requests.append((method, path))
            fault = None
            if self.only(method, handler.path):
                fault = self.faults.pop(0) if self.faults else self.always
        if fault == "hang":
            time.sleep(self.hang_seconds)
        if fault in ("hang", "reset"):
            handler.close_connection = True
            handler.connection.close()
            return
        if isinstance(fault, int):
            self._json(handler, fault, {"error": {"code": fault, "message": f"scripted {fault}; Bearer SECRET-TOKEN"}})
            return
        if method == "POST":
            self._upload(handler, path, query, body)
        elif method == "GET" and query.get("alt") == ["media"]:
            self._media(handler, self._name(path), fault)
        elif method == "GET" and path.endswith("/o"):
            self._list(handler, path.split("/b/")[1].split("/")[0], query)
        else:
            name = self._name(path)
            self._json(
                handler, *((200, self._describe(name)) if name in self.objects else (404, {"error": {"code": 404}}))
            )

    def _name(self, path: str) -> str:
        bucket, _, name = path.split("/b/", 1)[1].partition("/o/")
        return f"{bucket}/{name}"

    def _describe(self, name: str) -> dict[str, Any]:
        content = self.objects[name]
        bucket, _, key = name.partition("/")
        checksum = base64.b64encode(crc32c(content).to_bytes(4, "big")).decode()
        return {"name": key, "bucket": bucket, "size": str(len(content)), "crc32c": checksum, "generation": "1"}

    def _list(self, handler: Any, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        items, prefixes = [], set()
        for name in sorted(self.objects):
            holder, _, key = name.partition("/")
            if holder != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(name))
        first = int(query.get("pageToken", ["0"])[0])
        answer: dict[str, Any] = {
            "kind": "storage#objects",
            "items": items[first : first + self.page_size],
            "prefixes": sorted(prefixes),
        }
        if first + self.page_size < len(items):
            answer["nextPageToken"] = str(first + self.page_size)
        self._json(handler, 200, answer)

    def _media(self, handler: Any, name: str, fault: Any) -> None:
        if name not in self.objects:
            self._json(handler, 404, {"error": {"code": 404}})
            return
        content = self.objects[name]
        status = 200
        if "Range" in handler.headers:
            first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
            content, status = content[int(first) : int(last) + 1 if last else None], 206
        if fault == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "short":
            content = content[:-1]
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:-1] if fault == "truncate" else content)
        if fault == "truncate":
            handler.close_connection = True
            handler.connection.close()

    def _upload(self, handler: Any, path: str, query: dict[str, list[str]], body: bytes) -> None:
        bucket = path.split("/b/")[1].split("/")[0]
        boundary = handler.headers["Content-Type"].split("boundary=")[1].strip("\"'").encode()
        metadata, content = (part.split(b"\r\n\r\n", 1)[-1] if b"\r\n\r\n" in part else part.split(b"\n\n", 1)[-1]
                             for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
        name = f"{bucket}/{json.loads(metadata)['name']}"
        if query.get("ifGenerationMatch") == ["0"] and name in self.objects:
            self._json(handler, 412, {"error": {"code": 412}})
            return
        self.objects[name] = content[:-1] if content.endswith(b"\n") else content
        self._json(handler, 200, self._describe(name))

    def _json(self, handler: Any, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
