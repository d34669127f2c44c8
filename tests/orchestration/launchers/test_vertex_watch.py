"""Watching a custom job: its states and lines, each once, whatever of Google's is away meanwhile."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.launchers.vertex_client import VertexJobs
from orchestration.launchers.vertex_job import build_custom_job
from orchestration.launchers.vertex_watch import JobLogs, follow
from tests.orchestration.launchers.deployment import wait_for
from tests.orchestration.launchers.vertex_api import VertexApi

DENIED = (403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "logging.logEntries.list"}})
DOWN = (503, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "down"}})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[VertexApi]:
    with VertexApi(tmp_path) as server:
        yield server


@pytest.fixture
def jobs(api: VertexApi) -> VertexJobs:
    return VertexJobs("tiny-project", "europe-west4", api.address)


def start(jobs: VertexJobs, script: str) -> str:
    return jobs.create(
        build_custom_job({}, {}, args=["sh", "-c", script], image="i", run_id="r", job_name="j", attempt=0)
    ).name


def watched(api: VertexApi, jobs: VertexJobs, name: str) -> tuple[str, list[str]]:
    told: list[str] = []
    job = follow(jobs, JobLogs("tiny-project", name, api.address), name, told.append, seconds=0.05)
    return job.state.name, told


def test_every_line_is_told_once_in_its_order_over_many_pages(api: VertexApi, jobs: VertexJobs):
    """The stand-in's pages hold 20 entries; payloads are text and JSON in turn."""
    name = start(jobs, "for i in $(seq 1 65); do echo line $i; [ $i = 30 ] && sleep 0.4; done; true")
    state, told = watched(api, jobs, name)
    assert state == "JOB_STATE_SUCCEEDED"
    assert [line for line in told if line.startswith("line")] == [f"line {i}" for i in range(1, 66)]
    assert told[0] == "-- running"
    assert "-- succeeded" in told


def test_a_line_that_arrives_late_is_told(api: VertexApi, jobs: VertexJobs):
    """One with an earlier time than what was seen, as of another collector."""
    name = start(jobs, "echo one; echo two; sleep 30")
    logs = JobLogs("tiny-project", name, api.address)
    wait_for(lambda: api.containers[name].log.count("\n") == 2)
    assert list(logs.read()) == ["one", "two"]
    late = api.lines[name][0] | {"insertId": "late", "jsonPayload": {"message": "between"}}
    api.lines[name].insert(1, late)
    assert list(logs.read()) == ["between"]
    assert list(logs.read()) == []


def test_a_failure_is_told_with_its_last_lines(api: VertexApi, jobs: VertexJobs):
    state, told = watched(api, jobs, start(jobs, "echo broken; exit 3"))
    assert state == "JOB_STATE_FAILED"
    assert "broken" in told


def test_a_log_that_may_not_be_read_is_said_once_and_the_job_watched_on(api: VertexApi, jobs: VertexJobs):
    api.log_faults = [DENIED] * 100
    state, told = watched(api, jobs, start(jobs, "sleep 0.5"))
    assert state == "JOB_STATE_SUCCEEDED"
    (complaint,) = [line for line in told if "cannot be read here (403" in line]
    assert "https://console.cloud.google.com/logs/query" in complaint


def test_a_service_that_is_away_is_waited_for(api: VertexApi, jobs: VertexJobs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestration.launchers.vertex_client._RETRY_SECONDS", 0.1)
    name = start(jobs, "sleep 0.5")
    api.scripted = [DOWN] * 3
    started = time.monotonic()
    state, told = watched(api, jobs, name)
    assert state == "JOB_STATE_SUCCEEDED"
    assert told[0].startswith("-- Vertex AI does not answer")
    assert time.monotonic() - started < 30


def test_a_job_that_was_deleted_is_an_error(api: VertexApi, jobs: VertexJobs):
    name = start(jobs, "true")
    wait_for(lambda: api.containers[name].exit_code is not None)
    del api.jobs[name]
    with pytest.raises(LookupError, match="does not exist any more"):
        watched(api, jobs, name)
