"""`yt8m doctor`: each part tried for real, each fault with its cure; the same as a job of Dagster."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from orchestration.cli import main
from orchestration.definitions import build_definitions
from orchestration.doctor import judge_gpu, judge_precision
from orchestration.resources import build_resources
from orchestration.settings import Settings
from orchestration.state import prepare_state
from tests.device.test_hardware import CPU, L4
from tests.ports import free_port
from tests.tiny import tiny_recipe
from yt8m_assets.device.hardware import Hardware
from yt8m_assets.recipes import load_recipe


@pytest.fixture
def place(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose MLflow database is ready."""
    for name in ("YT8M_REQUIRE_GPU", "YT8M_STORAGE", "DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what prepare_state sets is put back
        monkeypatch.delenv(name)
    (tmp_path / "state" / "mlflow").mkdir(parents=True)
    shutil.copy(migrated_database, tmp_path / "state" / "mlflow" / "mlflow.db")
    return tmp_path / "state"


def examined(place: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, str]]:
    code = main(["doctor", "--state", str(place), *options])
    lines = capsys.readouterr().out.replace("\n       ", " -> ").splitlines()
    return code, {line[6:].split(":")[0]: line for line in lines}


def test_a_good_machine_passes_and_nothing_is_left_behind(place: Path, capsys: pytest.CaptureFixture[str]):
    code, lines = examined(place, capsys)
    assert code == 0, lines
    assert list(lines) == ["gpu", "precision", "storage", "dagster database", "mlflow"]
    assert all(line.startswith("ok ") for line in lines.values())
    assert not list((place / "artifacts").rglob("*probe*"))


def test_each_fault_fails_by_itself_with_its_cure(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (place.parent / "file").write_text("no folder")
    monkeypatch.setenv("YT8M_STORAGE", str(place.parent / "file" / "below"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    code, lines = examined(place, capsys)
    assert code == 1
    assert lines["storage"].startswith("FAIL")
    assert "-> see YT8M_STORAGE" in lines["storage"]
    assert lines["mlflow"].startswith("FAIL")
    assert "-> see MLFLOW_TRACKING_URI" in lines["mlflow"]
    assert lines["dagster database"].startswith("ok ")


def test_a_password_in_an_address_is_not_shown(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:canary-7731@127.0.0.1:{free_port()}")
    code, lines = examined(place, capsys)
    assert code == 1
    assert "http://127.0.0.1:" in lines["mlflow"]
    assert "canary" not in "".join(lines.values())


def test_a_bucket_is_tried_by_writing(
    place: Path, capsys: pytest.CaptureFixture[str], emulator: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("YT8M_STORAGE", f"gs://yt/{place.parent.name}")
    code, lines = examined(place, capsys)
    assert code == 0, lines
    assert f"gs://yt/{place.parent.name}: written, read, not overwritten, deleted" in lines["storage"]


def test_a_gpu_that_is_required_or_half_there_is_missed():
    assert judge_gpu(CPU, required=False).good
    assert not judge_gpu(CPU, required=True).good
    assert judge_gpu(L4, required=True).good
    old = Hardware(torch_version="2.13.0", cuda_build="13.0", driver="535.1.1", gpus=(), bfloat16=True)
    assert not judge_gpu(old, required=False).good
    assert "update the driver" in str(judge_gpu(old, required=False))


def test_a_recipe_in_bfloat16_needs_a_device_that_has_it():
    turing = Hardware(torch_version="2.13.0", cuda_build="13.0", driver="580.1", gpus=("T4",), bfloat16=False)
    finding = judge_precision(turing, load_recipe("challenge"))
    assert not finding.good
    assert 'precision = "float32"' in str(finding)
    assert judge_precision(L4, load_recipe("challenge")).good


def test_the_option_and_the_variable_ask_for_a_gpu(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    code, lines = examined(place, capsys, "--gpu")
    assert (code, lines["gpu"][:4]) == (1, "FAIL")
    monkeypatch.setenv("YT8M_REQUIRE_GPU", "1")
    assert examined(place, capsys)[0] == 1


def test_the_job_of_the_page_does_the_same(place: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings.from_environment(prepare_state(place))
    definitions = build_definitions(tiny_recipe(), build_resources(settings))
    job = definitions.resolve_job_def("doctor")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
        assert result.success
        (output,) = [event.step_output_data for event in result.all_events if event.is_successful_output]
        assert set(output.metadata) == {"gpu", "precision", "storage", "dagster_database", "mlflow"}
        monkeypatch.setenv("YT8M_STORAGE", "/proc/nowhere")
        broken = Settings.from_environment(prepare_state(place))
        job = build_definitions(tiny_recipe(), build_resources(broken)).resolve_job_def("doctor")
        assert not job.execute_in_process(instance=instance, raise_on_error=False).success


def test_under_kubernetes_it_runs_where_a_gpu_step_would():
    resources = dict.fromkeys(("store", "tracking", "progress"), dg.ResourceDefinition.none_resource())
    (node,) = build_definitions(load_recipe("challenge"), resources, "k8s").resolve_job_def("doctor").nodes
    container = node.definition.tags["dagster-k8s/config"]
    assert "nvidia.com/gpu" in container
    assert "YT8M_REQUIRE_GPU" in container
