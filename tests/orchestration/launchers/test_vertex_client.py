"""The client of the job service: which faults are retried, looked up, or passed on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api_core import exceptions

from orchestration.launchers.vertex_client import VertexJobs
from orchestration.launchers.vertex_job import build_custom_job
from tests.orchestration.launchers.http_server import NO_ANSWER
from tests.orchestration.launchers.vertex_api import VertexApi
from tests.ports import free_port


@pytest.fixture
def api(tmp_path: Path) -> Iterator[VertexApi]:
    with VertexApi(tmp_path) as server:
        server.hold = True
        yield server


@pytest.fixture
def jobs(api: VertexApi) -> VertexJobs:
    return VertexJobs("tiny-project", "europe-west4", api.address, look_again_seconds=(0, 0.1, 0.1))


def request(attempt: int = 0, **settings: object):
    return build_custom_job({}, settings, args=["true"], image="i", run_id="r", job_name="j", attempt=attempt)


@pytest.mark.parametrize("status", [503, 502, 500, NO_ANSWER])
def test_a_job_whose_answer_got_lost_is_found_and_not_made_twice(api: VertexApi, jobs: VertexJobs, status: int):
    """A connection that ends raises requests' ConnectionError, which is no built-in ConnectionError."""
    api.lose_next_answer = status
    made = jobs.create(request())
    assert list(api.jobs) == [made.name]


def test_a_job_that_appears_after_its_answer_got_lost_is_found(api: VertexApi, jobs: VertexJobs):
    api.lose_next_answer = NO_ANSWER
    api.hide_from_lists = 2
    made = jobs.create(request())
    assert list(api.jobs) == [made.name]


def test_a_request_that_timed_out_is_looked_up(api: VertexApi, jobs: VertexJobs, monkeypatch: pytest.MonkeyPatch):
    """requests' ReadTimeout is neither a ConnectionError nor one of google.api_core's errors."""
    monkeypatch.setattr("orchestration.launchers.vertex_client._CALL_SECONDS", 0.3)
    api.delay_next_answer = 0.8
    made = jobs.create(request())
    assert list(api.jobs) == [made.name]


def test_another_attempt_is_another_job(api: VertexApi, jobs: VertexJobs):
    first, second = jobs.create(request()), jobs.create(request(attempt=1))
    assert first.name != second.name
    found = jobs.find("r", "1")
    assert found is not None
    assert found.name == second.name


def test_a_refusal_is_passed_on_without_a_second_call(api: VertexApi, jobs: VertexJobs):
    with pytest.raises(exceptions.BadRequest, match="g2-standard-8 with 0 x"):
        jobs.create(request(machine_type="g2-standard-8"))
    assert len(api.requests) == 1
    assert not api.jobs


def test_an_unavailable_service_that_made_nothing_is_reported(api: VertexApi, jobs: VertexJobs):
    api.scripted = [(503, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "down"}})]
    with pytest.raises(exceptions.ServiceUnavailable):
        jobs.create(request())


def test_reading_is_retried_and_a_missing_job_is_none(api: VertexApi, jobs: VertexJobs):
    name = jobs.create(request()).name
    api.scripted = [(503, {"error": {"code": 503, "status": "UNAVAILABLE", "message": "down"}})]
    job = jobs.get(name)
    assert job is not None
    assert job.state.name == "JOB_STATE_PENDING"
    assert jobs.get(name + "9") is None


def test_reading_is_retried_when_the_connection_ends(api: VertexApi, jobs: VertexJobs):
    name = jobs.create(request()).name
    api.scripted = [(NO_ANSWER, {}), (502, {}), (504, {})]
    job = jobs.get(name)
    assert job is not None
    assert (job.name, job.state.name) == (name, "JOB_STATE_PENDING")


def test_a_service_that_is_gone_is_reported_as_the_transport_says():
    from requests.exceptions import ConnectionError as Refused

    gone = VertexJobs("tiny-project", "europe-west4", f"127.0.0.1:{free_port()}", look_again_seconds=())
    with pytest.raises(Refused):
        gone.create(request())


def test_missing_permission_is_not_retried(api: VertexApi, jobs: VertexJobs):
    api.scripted = [
        (403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "aiplatform.customJobs.get"}})
    ]
    with pytest.raises(exceptions.Forbidden, match=r"aiplatform\.customJobs\.get"):
        jobs.get("projects/tiny-project/locations/europe-west4/customJobs/1")
    assert len(api.requests) == 1


def test_links_lead_to_the_job_of_the_project(jobs: VertexJobs):
    name = "projects/7/locations/europe-west4/customJobs/42"
    assert jobs.console_url(name).endswith("/vertex-ai/locations/europe-west4/training/42?project=tiny-project")
    assert "job_id%3D%2242%22" in jobs.logs_url(name)
