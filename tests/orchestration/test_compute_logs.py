"""What steps write is in the bucket, and on the pages of a web server that shares nothing with them but the bucket."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType

from orchestration.compute_logs import BucketComputeLogManager

OUT, ERR = ComputeIOType.STDOUT, ComputeIOType.STDERR


@dg.op
def talkative() -> None:
    """Writes to both streams."""
    print("a line on stdout")  # noqa: T201
    print("a line on stderr", file=sys.stderr)  # noqa: T201


@dg.job(executor_def=dg.in_process_executor)
def talk() -> None:
    talkative()


@pytest.fixture
def root(emulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return f"gs://yt/{tmp_path.name}/logs"


@contextmanager
def machine(folder: Path, root: str) -> Iterator[dg.DagsterInstance]:
    """An instance with local folders of its own; the databases are shared, as in a deployment."""
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "storage": {"sqlite": {"base_dir": str(folder.parent / "storage")}},
        "compute_logs": {
            "module": "orchestration.compute_logs",
            "class": "BucketComputeLogManager",
            "config": {"root_uri": root, "local_dir": str(folder / "local"), "upload_interval": 1},
        },
        "telemetry": {"enabled": False},
    }
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance


def log_key(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    (event,) = [
        entry.dagster_event
        for entry in instance.all_logs(run_id)
        if entry.dagster_event_type == dg.DagsterEventType.LOGS_CAPTURED
    ]
    assert event is not None
    return [run_id, "compute_logs", event.logs_captured_data.file_key]


async def asked(server: Any, url: str, body: dict[str, Any]) -> tuple[str, str]:
    """What the web server answers to a download and to a query of its page."""
    transport = httpx.ASGITransport(app=server)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return (await client.get(url)).text, (await client.post("/graphql", json=body)).text


def test_another_machine_shows_and_downloads_what_a_step_wrote(tmp_path: Path, root: str):
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import EmptyWorkspaceTarget
    from dagster_webserver.webserver import DagsterWebserver

    with machine(tmp_path / "step", root) as instance:
        result = dg.execute_job(dg.reconstructable(talk), instance=instance)
        assert result.success
        key = log_key(instance, result.run_id)
    with machine(tmp_path / "web", root) as instance:
        manager = instance.compute_log_manager
        assert isinstance(manager, BucketComputeLogManager)
        assert manager.is_capture_complete(key)
        assert "a line on stdout" in manager.get_log_data(key).stdout.decode()
        assert "a line on stderr" in manager.get_log_data(key).stderr.decode()
        assert [key] == list(manager.get_log_keys_for_log_key_prefix(key[:-1], OUT))
        assert manager.get_log_metadata(key).stderr_location == f"{root}/{'/'.join(key)}.err"
        with WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as context:
            query = "query($key: [String!]!) { capturedLogs(logKey: $key) { stdout stderr } }"
            url = manager.download_url_for_type(key, OUT)
            body = {"query": query, "variables": {"key": key}}
            download, page = asyncio.run(asked(DagsterWebserver(context).create_asgi_app(), str(url), body))
            assert "a line on stdout" in download
            assert "a line on stderr" in json.loads(page)["data"]["capturedLogs"]["stderr"]
        manager.delete_logs(prefix=[result.run_id])
        assert not manager.cloud_storage_has_logs(key, OUT)


def test_a_running_step_is_seen_before_it_ends_and_a_lost_one_keeps_what_it_said(tmp_path: Path, root: str):
    writer = BucketComputeLogManager(root, str(tmp_path / "step"), upload_interval=1)
    reader = BucketComputeLogManager(root, str(tmp_path / "web"), upload_interval=1)
    key = ["run", "compute_logs", "step"]
    ended = threading.Event()
    path = Path(writer.local_manager.get_captured_local_path(key, "out"))
    path.parent.mkdir(parents=True)
    path.write_text("so far\n")
    with writer._poll_for_local_upload(key):
        deadline = time.monotonic() + 20
        while not (data := reader.get_log_data(key).stdout) and time.monotonic() < deadline:
            ended.wait(0.1)
    assert data == b"so far\n"
    assert not reader.is_capture_complete(key)


def test_a_bucket_that_cannot_be_written_costs_the_log_and_not_the_step(
    tmp_path: Path, root: str, caplog: pytest.LogCaptureFixture
):
    with machine(tmp_path / "step", root.replace("gs://yt/", "gs://not-there/")) as instance:
        result = dg.execute_job(dg.reconstructable(talk), instance=instance)
        assert result.success
    assert "cannot keep the log" in caplog.text
