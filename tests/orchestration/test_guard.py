"""Who may ask Dagster's pages for what: names, sites, methods and types of a request."""

import asyncio
import json
from typing import Any

import pytest

from orchestration.guard import LOCAL_HOSTS, Guard

RUN = "#/experiments/1/runs/0123456789abcdef0123456789abcdef?workflowType=machine_learning"
JSON = {"Content-Type": "application/json"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
ASKED = {
    "url": f"http://127.0.0.1:5000/{RUN}",
    "other": f"http://tracking.example:5000/{RUN}",
    "page": "http://127.0.0.1:5000/",
}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body in two parts; a web socket with one message."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(ASKED)})
        return
    body = (await receive())["body"]
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body[:30], "more_body": True})
    await send({"type": "http.response.body", "body": body[30:]})


def call(
    method: str, path: str, headers: dict[str, str], content: str = "", kind: str = "http", **options: Any
) -> list[dict[str, Any]]:
    """The messages with which a guarded application answers."""
    path, _, query = path.partition("?")
    named = {"Host": "127.0.0.1:3000", **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in named.items()]
    scope = {"type": kind, "method": method, "path": path, "query_string": query.encode(), "headers": pairs}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content.encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(application, **options)(scope, receive, send))
    return sent


def content_of(messages: list[dict[str, Any]]) -> Any:
    """The JSON of an answer, whose length is as it says."""
    body = b"".join(message.get("body", b"") for message in messages)
    assert dict(messages[0]["headers"])[b"content-length"] == str(len(body)).encode()
    return json.loads(body)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"Host": "localhost:1"}, 200),
        ("GET", "/", {"Host": "[::1]:3000"}, 200),
        ("GET", "/", {"Host": "evil.example:3000"}, 421),
        ("GET", "/", {"Host": "127.0.0.1.evil.example"}, 421),
        ("GET", "/", {"Host": ""}, 421),
        ("GET", "/graphql?query=mutation{wipe}", {"Accept": "image/*"}, 405),
        ("GET", "/prefix/graphql/?query={version}", {}, 405),
        ("GET", "/graphql", {"Accept": "text/html"}, 200),
        ("POST", "/graphql?query=mutation{wipe}", {"Content-Type": "text/plain"}, 415),
        ("POST", "/graphql?query=mutation{wipe}", {}, 415),
        ("POST", "/graphql", JSON, 200),
        ("POST", "/graphql", {**JSON, "Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", "/graphql", {**JSON, "Origin": "http://evil.example"}, 403),
        ("POST", "/graphql", {**JSON, "Origin": "null"}, 403),
        ("POST", "/graphql", {**JSON, "Origin": "http://127.0.0.1:5000"}, 403),
        ("POST", "/report_asset_materialization/submission", {"Origin": "http://evil.example"}, 403),
        ("GET", "/logs/1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", "/runs", {"Sec-Fetch-Site": "same-site", **LINK}, 200),
        ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("POST", "/x", {"Sec-Fetch-Site": "cross-site", **LINK}, 403),
    ],
)  # fmt: skip
def test_what_is_refused(method: str, path: str, headers: dict[str, str], status: int) -> None:
    assert call(method, path, headers)[0]["status"] == status


def test_a_proxys_name_can_be_added() -> None:
    own = {"Host": "dagster.example.org", "Origin": "https://dagster.example.org"}
    hosts = LOCAL_HOSTS | {"dagster.example.org"}
    assert call("POST", "/graphql", {**JSON, **own}, hosts=hosts)[0]["status"] == 200


def test_web_sockets_of_other_sites_are_refused() -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert [message["type"] for message in call("", "/graphql", headers, kind="websocket")] == ["websocket.close"]
    opened = call("", "/graphql", {"Origin": "http://127.0.0.1:3000"}, kind="websocket")
    assert json.loads(opened[1]["text"]) == ASKED


def test_links_lead_to_the_mlflow_of_now() -> None:
    """Kept when MLflow had port 5000; other servers' links and other words stay."""
    now = {**ASKED, "url": f"http://127.0.0.1:5001/{RUN}"}
    local = {"mlflow_url": "http://127.0.0.1:5001/"}
    assert content_of(call("POST", "/graphql", JSON, json.dumps(ASKED), **local)) == now
    assert content_of(call("POST", "/other", {}, json.dumps(ASKED), **local)) == ASKED
    assert json.loads(call("", "/graphql", {}, kind="websocket", **local)[1]["text"]) == now
    elsewhere = call("POST", "/graphql", JSON, json.dumps(ASKED), mlflow_url="http://tracking.example")
    assert content_of(elsewhere) == ASKED
