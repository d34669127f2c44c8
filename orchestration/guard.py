"""What stands before Dagster's pages: its web server takes any Host, and executes a mutation that a GET asks for.

Without it any web page that is open in the same browser could start runs or wipe assets: an image whose address is
`http://127.0.0.1:3000/graphql?query=mutation...` is enough. `python -m orchestration.guard` is `dagster-webserver`
behind the guard, with the same options. Beside the pages it hands out the files of artifacts (`served_files`).
"""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

from yt8m_assets.storage.manifest import FILES_PATH

HOSTS_VARIABLE = "YT8M_UI_HOSTS"
"""More names, separated by commas, by which a browser may call the pages: a proxy's."""
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
MLFLOW_VARIABLE = "YT8M_MLFLOW_UI_URL"
_LOCAL_RUN = re.compile(rb"http://(?:127\.0\.0\.1|localhost)(?::\d+)?(?=/#/experiments/\d+/runs)")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application around another: known hosts, nothing from other sites, GraphQL over POST only.

    With `mlflow_url`, links to runs of an MLflow on this machine lead there, whatever its port was when they were kept.
    `files` answers what lies below `FILES_PATH`.
    """

    def __init__(
        self,
        application: Application,
        hosts: frozenset[str] = LOCAL_HOSTS,
        mlflow_url: str = "",
        files: Application | None = None,
    ) -> None:
        self.application, self.hosts, self.files = application, hosts, files
        self.mlflow_url = mlflow_url.rstrip("/").encode() if urlsplit(mlflow_url).hostname in LOCAL_HOSTS else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed; answer everything else."""
        if scope["type"] not in ("http", "websocket"):
            return await self.application(scope, receive, send)
        refused = refusal(scope, self.hosts)
        if refused is not None:
            return await _answer(scope, receive, send, *refused)
        application = self.application
        if self.files and scope["type"] == "http" and scope["path"].startswith(FILES_PATH):
            application = self.files
        page = application is self.files and scope["path"].endswith(".html")
        if self.mlflow_url and scope.get("method") != "HEAD" and (page or _is_graphql(scope)):
            kept = [item for item in scope["headers"] if item[0] not in (b"accept-encoding", b"range")]
            scope = {**scope, "headers": kept}
            send = _with_links(send, self.mlflow_url)
        return await application(scope, receive, send)


def refusal(scope: Scope, hosts: frozenset[str]) -> tuple[int, str] | None:
    """Status and reason with which a request is refused; None where it is allowed."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if _name(host) not in hosts:
        return 421, f"{host or 'no host'}: not a name of this server; {HOSTS_VARIABLE} lists more of them"
    if not _same_site(scope, headers, host):
        return 403, "requests from other web sites are refused"
    if scope["type"] == "websocket" or not _is_graphql(scope) or scope["method"] == "OPTIONS":
        return None
    if scope["method"] != "POST":
        page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        return None if page else (405, "GraphQL is asked with POST")
    known = headers.get("content-type", "").split(";")[0].strip().lower() in ("application/json", "application/graphql")
    return None if known else (415, "GraphQL takes application/json")


def _same_site(scope: Scope, headers: Mapping[str, str], host: str) -> bool:
    """Whether a browser says that one of this server's own pages, a bookmark or a link asks."""
    if "origin" in headers and urlsplit(headers["origin"]).netloc.lower() != host.lower():
        return False
    link = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
    link = link and headers.get("sec-fetch-dest") == "document"
    return headers.get("sec-fetch-site", "none") in ("same-origin", "none") or link


def _name(host: str) -> str:
    """A Host header without its port."""
    return host.lower() if host.endswith("]") else host.lower().rsplit(":", 1)[0]


def _is_graphql(scope: Scope) -> bool:
    return str(scope["path"]).rstrip("/").endswith("/graphql")


async def _answer(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    web_socket = scope["type"] == "websocket"
    answer = WebSocketClose(1008, reason) if web_socket else PlainTextResponse(f"{reason}\n", status)
    await answer(scope, receive, send)


def _with_links(send: Send, mlflow_url: bytes) -> Send:
    """Answers in which links to local MLflow runs lead to `mlflow_url`; an answer is kept back until it is whole."""
    start: Message = {}
    parts: list[bytes] = []

    async def rewriting(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                body = _LOCAL_RUN.sub(mlflow_url, b"".join(parts))
                kept = [item for item in start["headers"] if item[0].lower() != b"content-length"]
                await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                await send({**message, "body": body})
        elif message["type"] == "websocket.send" and message.get("text"):
            text = _LOCAL_RUN.sub(mlflow_url, message["text"].encode()).decode()
            await send({**message, "text": text})
        else:
            await send(message)

    return rewriting


def main() -> None:
    """`dagster-webserver` with the guard before it. Raises RuntimeError where this version of it cannot be guarded."""
    from dagster_webserver import cli

    from orchestration.served_files import ArtifactFiles
    from orchestration.settings import Settings
    from orchestration.state import find_state

    create = getattr(cli, "create_app_from_workspace_process_context", None)
    if create is None:
        raise RuntimeError("this dagster-webserver cannot be guarded: install the pinned version")
    more = {name.strip().lower() for name in os.environ.get(HOSTS_VARIABLE, "").split(",") if name.strip()}
    files = ArtifactFiles(Settings.from_environment(find_state()).open_store())

    def create_guarded(*arguments: Any, **options: Any) -> Guard:
        pages = create(*arguments, **options)
        return Guard(pages, LOCAL_HOSTS | more, os.environ.get(MLFLOW_VARIABLE, ""), files)

    vars(cli)["create_app_from_workspace_process_context"] = create_guarded
    cli.main()


if __name__ == "__main__":
    main()
