"""A stand-in for Google Cloud Storage on loopback that misbehaves as told."""

import base64
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

from crc32c import crc32c


class Crowd:
    """A `before` that lets each request take some seconds, and counts how many are there together."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.open, self.most = seconds, 0, 0
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str, body: bytes) -> None:
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
        time.sleep(self.seconds)
        with self._lock:
            self.open -= 1


class FakeStore:
    """Objects in memory, and a list of faults: each request takes the next one (None: behave).

    A fault is a status (int, or with a message), "reset", "hang", "truncate", "corrupt", "short", "half-line" (of an
    answer), "half" (of a chunk is kept, then the line is cut) or "unheard" (all is done, but the answer is lost).
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        """How often an object was stored by `put`."""
        self.media_bytes = 0
        """Bytes of objects that were sent."""
        self.faults: list[Any] = []
        self.always: Any = None
        self.only: Callable[[str, str], bool] = lambda method, path: True
        self.requests: list[tuple[str, str]] = []
        self.hang_seconds = 3.0
        self.before: Callable[[str, str, bytes], None] = lambda method, path, body: None
        """Told of each request with its body before anything is done about it."""
        self.page_size = 1000
        self.tokens: set[str] | None = None
        """Access tokens that are accepted; None: nobody is asked for one."""
        self.token_name = "token"
        self.token_faults: list[int] = []
        """Statuses of the next requests for a token."""
        self.sessions: dict[str, tuple[str, bytearray]] = {}
        """Upload -> name and what has arrived."""
        self.sent: list[tuple[int, int]] = []
        """First byte and number of the bytes that arrived in chunks."""
        self._lock = threading.Lock()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else head and body of an answer lie 40 ms apart

            def do_GET(self) -> None:
                store.handle(self, "GET")

            def do_POST(self) -> None:
                store.handle(self, "POST")

            def do_PUT(self) -> None:
                store.handle(self, "PUT")

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
        self.generations[name] = self.generations.get(name, 0) + 1
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
        self.before(method, path, body)
        if path == "/token":
            self._grant(handler)
            return
        if self.tokens is not None and handler.headers.get("Authorization", "")[7:] not in self.tokens:
            anonymous = "Authorization" not in handler.headers
            message = "Anonymous caller does not have access." if anonymous else "Invalid Credentials"
            self._json(handler, 401, {"error": {"code": 401, "message": message}})
            return
        if fault == "hang":
            time.sleep(self.hang_seconds)
        if fault in ("hang", "reset"):
            handler.close_connection = True
            handler.connection.close()
            return
        if isinstance(fault, tuple):
            self._json(handler, fault[0], {"error": {"code": fault[0], "message": fault[1]}})
            return
        if isinstance(fault, int):
            self._json(handler, fault, {"error": {"code": fault, "message": f"scripted {fault}; Bearer SECRET-TOKEN"}})
            return
        if method == "DELETE":
            found = self.objects.pop(self._name(path), None) is not None
            self._json(handler, 200 if found else 404, {} if found else {"error": {"code": 404}})
        elif "upload_id" in query:
            self._receive(handler, query["upload_id"][0], body, fault)
        elif query.get("uploadType") == ["resumable"]:
            session = f"session{len(self.sessions)}"
            self.sessions[session] = (f"{path.split('/b/')[1].split('/')[0]}/{query['name'][0]}", bytearray())
            self._json(handler, 200, {}, {"Location": f"{self.url}/upload?upload_id={session}"})
        elif method == "POST":
            self._upload(handler, path, query, body, fault)
        elif method == "GET" and query.get("alt") == ["media"]:
            name = self._name(path)
            if query.get("ifGenerationMatch", [self._generation(name)]) != [self._generation(name)]:
                self._json(handler, 412, {"error": {"code": 412}})
                return
            self._media(handler, name, fault)
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
        return {
            "name": key,
            "bucket": bucket,
            "size": str(len(content)),
            "crc32c": checksum,
            "generation": str(self.generations.get(name, 1)),
        }

    def _generation(self, name: str) -> str:
        return str(self._describe(name)["generation"]) if name in self.objects else ""

    def _list(self, handler: Any, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        items, prefixes = [], set()
        for name in sorted(self.objects.copy()):
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
        cut = {"truncate": len(content) - 1, "half-line": len(content) // 2}.get(fault, len(content))
        handler.wfile.write(content[:cut])
        self.media_bytes += cut
        if cut < len(content):
            handler.close_connection = True
            handler.connection.close()

    def _upload(self, handler: Any, path: str, query: dict[str, list[str]], body: bytes, fault: Any) -> None:
        bucket = path.split("/b/")[1].split("/")[0]
        boundary = handler.headers["Content-Type"].split("boundary=")[1].strip("\"'").encode()
        metadata, content = (part.split(b"\r\n\r\n", 1)[-1] if b"\r\n\r\n" in part else part.split(b"\n\n", 1)[-1]
                             for part in body.split(b"--" + boundary)[1:3])  # fmt: skip
        name = f"{bucket}/{json.loads(metadata)['name']}"
        if query.get("ifGenerationMatch") == ["0"] and name in self.objects:
            self._json(handler, 412, {"error": {"code": 412}})
            return
        self.objects[name] = content.removesuffix(b"\n")
        if fault == "unheard":
            handler.close_connection = True
            handler.connection.close()
        else:
            self._json(handler, 200, self._describe(name))

    def _receive(self, handler: Any, session: str, body: bytes, fault: Any) -> None:
        """A chunk or a question of a resumable upload."""
        if session not in self.sessions:
            self._json(handler, 410, {"error": {"code": 410, "message": "session is gone"}})
            return
        name, held = self.sessions[session]
        place, _, size = handler.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if place != "*":
            first = int(place.split("-")[0])
            self.sent.append((first, len(body)))
            assert first <= len(held), "a gap"
            kept = body[: len(body) // 2 // 2**18 * 2**18] if fault == "half" else body
            held += kept[len(held) - first :]
        if len(held) == int(size):
            self.objects[name] = bytes(held)
        if fault in ("half", "unheard"):
            handler.close_connection = True
            handler.connection.close()
        elif len(held) == int(size):
            self._json(handler, 200, self._describe(name))
        else:
            self._json(handler, 308, {}, {"Range": f"bytes=0-{len(held) - 1}"} if held else {})

    def _grant(self, handler: Any) -> None:
        """A new access token, the only one that is good from now on."""
        if self.token_faults:
            status = self.token_faults.pop(0)
            self._json(handler, status, {"error": "invalid_grant", "error_description": "SECRET-TOKEN revoked"})
            return
        token = f"{self.token_name}{sum(path == '/token' for _, path in self.requests)}"
        self.tokens = {token}
        self._json(handler, 200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _json(
        self, handler: Any, status: int, content: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        text = json.dumps(content).encode()
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
