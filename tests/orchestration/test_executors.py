"""The executor of each name, what is said when it cannot be used, and how threads are shared."""

import subprocess
import sys
import tempfile
from pathlib import Path

import dagster as dg
import pytest

from orchestration.executors import EXECUTORS, default_concurrency, executor_for, share_threads
from orchestration.idle import in_process_when_idle
from tests.tiny import tiny_recipe
from yt8m_assets.errors import ConfigError
from yt8m_assets.storage import ArtifactStore


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_name_has_an_executor(name: str):
    assert executor_for(name).name == name


def test_another_name_is_refused_with_the_choices():
    with pytest.raises(
        ConfigError, match="YT8M_EXECUTOR = 'celery': choose one of in_process, multiprocess, k8s, vertex"
    ):
        executor_for("celery")


@pytest.mark.parametrize(
    ("name", "module"), [("k8s", "dagster_k8s"), ("vertex", "google.cloud.aiplatform_v1"), ("vertex", "google")]
)
def test_a_missing_extra_is_named(name: str, module: str):
    code = f"""
import importlib.util, sys
found = importlib.util.find_spec
def find_spec(asked, package=None):
    if asked == {module!r}:
        return None
    if asked.startswith({module!r} + "."):
        raise ModuleNotFoundError(asked)
    return found(asked, package)
importlib.util.find_spec = find_spec
from orchestration.executors import executor_for
from yt8m_assets.errors import ConfigError
try:
    executor_for({name!r})
except ConfigError as error:
    sys.exit(0 if "pip install '.[{name}]'" in str(error) else f"message: {{error}}")
sys.exit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_executors_load_no_cloud_client():
    code = "import sys; from orchestration.executors import executor_for; executor_for('multiprocess')\n"
    code += "heavy = {'kubernetes', 'google.cloud.aiplatform_v1', 'torch'} & set(sys.modules)\n"
    code += "sys.exit(', '.join(heavy) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("cpus", "steps"), [(1, 1), (2, 1), (7, 1), (8, 2), (16, 4), (96, 4)])
def test_steps_at_once_follow_the_cpus(cpus: int, steps: int):
    assert default_concurrency(cpus) == steps


def test_threads_are_shared_and_a_users_setting_stays():
    environment = {"MKL_NUM_THREADS": "3"}
    share_threads(environment, cpus=16, num_steps=4)
    assert environment == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "3"}
    alone = {"OMP_NUM_THREADS": "1"}  # by MKL's own variable, MKL would take the others all the same
    share_threads(alone, cpus=16, num_steps=4)
    assert set(alone.values()) == {"1"}
    tight: dict[str, str] = {}
    share_threads(tight, cpus=2, num_steps=8)
    assert tight["OMP_NUM_THREADS"] == "1"


@dg.op
def report_threads(context: dg.OpExecutionContext) -> None:
    import os

    context.log.info(f"threads {os.environ['OMP_NUM_THREADS']}")


@dg.job(executor_def=executor_for("multiprocess"))
def threads_job() -> None:
    report_threads()


def test_step_processes_get_their_share_of_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("orchestration.executors.num_cpus", lambda: 12)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "0")  # so that monkeypatch puts back what was there
        monkeypatch.delenv(name)
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        config = {"execution": {"config": {"max_concurrent": 2}}}
        result = dg.execute_job(dg.reconstructable(threads_job), instance=instance, run_config=config)
        assert result.success
        assert any("threads 6" in entry.user_message for entry in instance.all_logs(result.run_id))


def job_of_the_definitions() -> dg.JobDefinition:
    """A job as the code location runs it: where nothing is to be computed, in the run's own process."""
    store = ArtifactStore(str(Path(tempfile.gettempdir()) / "nothing is read of it"))
    executor = in_process_when_idle(executor_for("multiprocess"), tiny_recipe(), {"store": store})

    @dg.job(executor_def=executor)
    def job() -> None:
        report_threads()

    return job


@pytest.mark.slow
def test_the_default_executor_of_the_definitions_takes_its_settings_or_none(tmp_path: Path) -> None:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        for config in ({}, {"max_concurrent": 1}):
            job = dg.reconstructable(job_of_the_definitions)
            assert dg.execute_job(job, instance=instance, run_config={"execution": {"config": config}}).success


@dg.job(executor_def=executor_for("vertex"))
def vertex_job() -> None:
    report_threads()


def test_vertex_without_its_run_launcher_says_what_to_set(tmp_path: Path):
    with (
        dg.instance_for_test(temp_dir=str(tmp_path)) as instance,
        pytest.raises(ConfigError, match=r"the instance's run launcher is \w+: .*deploy/dagster-vertex\.yaml"),
    ):
        dg.execute_job(dg.reconstructable(vertex_job), instance=instance)
