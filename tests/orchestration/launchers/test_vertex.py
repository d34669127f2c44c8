"""Runs on Vertex AI, against a stand-in of its REST API: launch, success, failure, cancel, loss and resumption."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.launcher import ResumeRunContext

from orchestration.launchers.vertex import JOB_TAG
from tests.orchestration.launchers.deployment import Deployment, deploy, wait_for
from tests.orchestration.launchers.vertex_api import VertexApi

pytestmark = pytest.mark.xdist_group("vertex")
CANCELED, FAILURE, SUCCESS = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VertexApi]:
    with VertexApi(tmp_path_factory.mktemp("vertex")) as server:
        yield server


@pytest.fixture(scope="module")
def deployment(api: VertexApi, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    launcher = {
        "module": "orchestration.launchers.vertex",
        "class": "VertexAIRunLauncher",
        "config": {
            "project": "tiny-project",
            "location": "europe-west4",
            "emulator_host": api.address,
            "image": "europe-west4-docker.pkg.dev/tiny-project/yt8m/cuda:1",
            "service_account": "dagster@tiny-project.iam.gserviceaccount.com",
            "labels": {"team": "video"},
            "env_vars": ["TINY_EXECUTOR=vertex"],
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_EXECUTOR", "vertex")
        with deploy(tmp_path_factory.mktemp("home"), launcher) as deployed:
            yield deployed


def history(folder: Path) -> list[int]:
    """The numbers a run counted, in order."""
    return [int(line.split()[0]) for line in (folder / "history.txt").read_text().splitlines()]


def test_a_gpu_asset_runs_on_the_machine_its_hints_ask_for(api: VertexApi, deployment: Deployment, tmp_path: Path):
    run_id = deployment.launch("both", tmp_path)
    assert deployment.wait(run_id) == SUCCESS
    assert history(tmp_path) == [1, 2, 3]
    name = deployment.run(run_id).tags[JOB_TAG]
    wait_for(lambda: api.containers[name].exit_code is not None)
    job = api.current(name)
    assert job.state.name == "JOB_STATE_SUCCEEDED"
    machine = job.job_spec.worker_pool_specs[0].machine_spec
    assert (machine.machine_type, machine.accelerator_type.name, machine.accelerator_count) == (
        "g2-standard-8",
        "NVIDIA_L4",
        1,
    )
    assert dict(job.labels) == {
        "dagster-run-id": run_id,
        "dagster-attempt": "0",
        "dagster-job": "both",
        "team": "video",
    }
    assert job.job_spec.service_account == "dagster@tiny-project.iam.gserviceaccount.com"
    assert job.job_spec.scheduling.disable_retries


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_its_run_goes_on_from_the_checkpoint(
    api: VertexApi, deployment: Deployment, tmp_path: Path
):
    run_id = deployment.launch("count", tmp_path, target=6, delay_seconds=0.5)
    wait_for(lambda: (tmp_path / "checkpoint.txt").exists() and (tmp_path / "checkpoint.txt").read_text() >= "2")
    first = deployment.run(run_id).tags[JOB_TAG]
    deployment.monitor()
    assert deployment.run(run_id).tags[JOB_TAG] == first, "a healthy worker was replaced"
    api.lose_worker(first)
    deployment.monitor()
    second = deployment.run(run_id).tags[JOB_TAG]
    assert second != first
    assert api.jobs[second].labels["dagster-attempt"] == "1"
    assert deployment.wait(run_id) == SUCCESS
    assert sorted(set(history(tmp_path))) == [1, 2, 3, 4, 5, 6]
    assert len(history(tmp_path)) <= 7, "more than the interrupted number was counted again"
    assert "JOB_STATE_FAILED" in deployment.messages(run_id)


@pytest.mark.cloud
def test_a_preempted_worker_is_replaced_and_its_run_goes_on(api: VertexApi, deployment: Deployment, tmp_path: Path):
    run_id = deployment.launch("count", tmp_path, target=16, delay_seconds=0.5)
    wait_for(lambda: (tmp_path / "history.txt").exists() and len(history(tmp_path)) >= 2)
    first = deployment.run(run_id).tags[JOB_TAG]
    api.preempt(first)
    wait_for(lambda: api.containers[first].exit_code is not None)
    deployment.monitor()
    assert deployment.wait(run_id) == SUCCESS
    assert deployment.run(run_id).tags[JOB_TAG] != first
    assert sorted(set(history(tmp_path))) == list(range(1, 17))


@pytest.mark.cloud
def test_a_failing_step_fails_run_and_job(api: VertexApi, deployment: Deployment, tmp_path: Path):
    run_id = deployment.launch("count", tmp_path, fail=True)
    assert deployment.wait(run_id) == FAILURE
    name = deployment.run(run_id).tags[JOB_TAG]
    wait_for(lambda: api.containers[name].exit_code is not None)
    assert api.current(name).state.name == "JOB_STATE_FAILED"
    deployment.monitor()
    assert deployment.run(run_id).status == FAILURE
    assert deployment.run(run_id).tags[JOB_TAG] == name, "a failed run was started again"
    info = deployment.instance.run_launcher.get_run_worker_debug_info(deployment.run(run_id))
    assert info is not None
    assert "exited with a non-zero status of 1" in info
    assert "console.cloud.google.com" in info


@pytest.mark.cloud
def test_a_canceled_run_stops_its_worker(api: VertexApi, deployment: Deployment, tmp_path: Path):
    run_id = deployment.launch("count", tmp_path, target=1000, delay_seconds=0.2)
    wait_for((tmp_path / "checkpoint.txt").exists)
    assert deployment.instance.run_launcher.terminate(run_id)
    assert deployment.wait(run_id) == CANCELED
    name = deployment.run(run_id).tags[JOB_TAG]
    wait_for(lambda: api.current(name).state.name == "JOB_STATE_CANCELLED")
    assert not deployment.instance.run_launcher.terminate(run_id), "a run that has ended cannot be canceled"


@pytest.mark.cloud
def test_a_run_whose_workers_keep_dying_fails_after_the_allowed_attempts(
    api: VertexApi, deployment: Deployment, tmp_path: Path
):
    run_id = deployment.launch("count", tmp_path, target=1000, delay_seconds=0.2)
    for attempt in range(3):
        counted = len(history(tmp_path)) if attempt else 0
        wait_for(lambda seen=counted: (tmp_path / "history.txt").exists() and len(history(tmp_path)) > seen)
        api.lose_worker(deployment.run(run_id).tags[JOB_TAG])
        deployment.monitor()
    assert deployment.run(run_id).status == FAILURE
    assert "maximum attempts to resume the run: 2" in deployment.messages(run_id)
    assert "Logs: https://console.cloud.google.com" in deployment.messages(run_id)


def test_a_run_canceled_while_it_waits_for_a_machine_ends_at_once(
    api: VertexApi, deployment: Deployment, tmp_path: Path
):
    api.hold = True
    try:
        run_id = deployment.launch("count", tmp_path)
        deployment.monitor()
        assert deployment.run(run_id).status == dg.DagsterRunStatus.STARTING
        assert deployment.instance.run_launcher.terminate(run_id)
    finally:
        api.hold = False
    assert deployment.run(run_id).status == CANCELED
    assert api.current(deployment.run(run_id).tags[JOB_TAG]).state.name == "JOB_STATE_CANCELLED"


@pytest.mark.cloud
def test_a_fault_of_the_api_starts_no_second_worker_and_a_cancel_from_outside_is_a_wish(
    api: VertexApi, deployment: Deployment, tmp_path: Path
):
    run_id = deployment.launch("count", tmp_path, target=1000, delay_seconds=0.2)
    wait_for((tmp_path / "checkpoint.txt").exists)
    name = deployment.run(run_id).tags[JOB_TAG]
    api.scripted = [(403, {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "no customJobs.get"}})]
    (fault,) = deployment.monitor_faults()
    assert "no customJobs.get" in fault
    assert (deployment.run(run_id).status, deployment.run(run_id).tags[JOB_TAG]) == (dg.DagsterRunStatus.STARTED, name)
    api.canceled.add(name)
    api.lose_worker(name)
    deployment.monitor()
    assert deployment.run(run_id).status == CANCELED
    deployment.monitor()
    assert deployment.run(run_id).tags[JOB_TAG] == name


def without_its_tag(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that launches dies after it has made the job and before it can write so."""

    real, instance = deployment.instance.add_run_tags, deployment.instance

    def die(run_id: str, tags: dict[str, str]) -> None:
        if JOB_TAG in tags:
            monkeypatch.setattr(instance, "add_run_tags", real)
            raise KeyboardInterrupt
        real(run_id, tags)

    monkeypatch.setattr(instance, "add_run_tags", die)
    monkeypatch.setattr(instance, "report_run_failed", lambda *_: None)  # a dead process reports nothing


def jobs_of(api: VertexApi, run_id: str) -> list[str]:
    return [name for name, job in api.jobs.items() if job.labels["dagster-run-id"] == run_id]


@pytest.mark.parametrize(
    "action",
    ["watched", pytest.param("resumed", marks=pytest.mark.cloud), pytest.param("canceled", marks=pytest.mark.cloud)],
)
def test_a_job_whose_launcher_died_before_it_wrote_its_tag_is_found_by_label(
    api: VertexApi, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
):
    if action == "watched":
        target, delay = 6, 0.3
    else:
        target, delay = 1000, 0.2
    without_its_tag(deployment, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        deployment.launch("count", tmp_path, target=target, delay_seconds=delay)
    (run,) = deployment.instance.get_runs(limit=1)
    wait_for((tmp_path / "checkpoint.txt").exists, seconds=30)
    (job,) = jobs_of(api, run.run_id)
    assert JOB_TAG not in deployment.run(run.run_id).tags
    if action == "watched":
        deployment.monitor()
        assert deployment.run(run.run_id).tags[JOB_TAG] == job
        assert deployment.wait(run.run_id) == SUCCESS
    elif action == "resumed":
        context = ResumeRunContext(deployment.run(run.run_id), None, resume_attempt_number=1)
        deployment.instance.run_launcher.resume_run(context)
        assert deployment.run(run.run_id).tags[JOB_TAG] == job
        assert "Vertex AI custom job found running" in deployment.messages(run.run_id)
        api.lose_worker(job)
        deployment.instance.report_run_canceled(deployment.run(run.run_id))
    else:
        assert deployment.instance.run_launcher.terminate(run.run_id)
        assert deployment.wait(run.run_id) == CANCELED
    assert jobs_of(api, run.run_id) == [job], "a second worker was started beside the first"
