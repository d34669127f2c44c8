"""Tracking: the null, in-memory and MLflow implementations of one protocol."""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from yt8m_assets.tracking import MlflowTracking, NullTracking, registry
from yt8m_assets.tracking.record import mlflow_name, now_milliseconds
from yt8m_assets.tracking.system import SystemMonitor
from yt8m_assets.training.interruption import TrainingPreempted


@pytest.fixture
def tracking(mlflow_uri: str, tmp_path: Path) -> MlflowTracking:
    location = str(tmp_path / "artifacts")
    return MlflowTracking(mlflow_uri, artifact_location=location, ui_url="http://ui:5000/")


def test_null_tracking_drops_everything(tmp_path: Path):
    with NullTracking().run("name", kind="pretraining", params={"a": 1}) as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        run.log_artifact(tmp_path / "absent")
        assert run.register_model("m", tmp_path, metric=0.5) is None
        assert run.run_id is None
        assert run.url is None


def test_memory_tracking_records_and_resumes():
    tracking = MemoryTracking()
    with pytest.raises(RuntimeError), tracking.run("name", kind="pretraining", params={"a": 1}) as run:
        run.log_metrics({"train/loss": 1.0}, 0)
        run.log_metrics({"train/loss": 7.0, "train/rate": 2.0}, 0)
        raise RuntimeError("interrupted")
    assert tracking.runs[0].status == "FAILED"
    with tracking.run("name", kind="pretraining", params={"a": 1}, resume=run.state()) as again:
        again.log_metrics({"train/loss": 9.0}, 0)
        again.log_metrics({"train/loss": 0.5}, 1)
    assert tracking.runs[0].series("train/loss") == [(0, 1.0), (1, 0.5)]
    assert tracking.runs[0].series("train/rate") == [(0, 2.0)]
    assert (tracking.runs[0].status, tracking.runs[0].attempt) == ("FINISHED", 2)
    with tracking.run("name", kind="pretraining", params={"a": 2}, resume=run.state()):
        pass
    assert tracking.runs[1].record.parent == run.record.token


def test_mlflow_run_holds_what_was_logged(tracking: MlflowTracking, mlflow_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"picture")
    params = {f"training.field_{number}": number for number in range(150)}
    with tracking.run(
        "bert pretraining", kind="pretraining", model="bert", params=params, tags={"recipe": "demo"}
    ) as run:
        for step in range(2500):
            run.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
        run.log_params({"best/w0": 0.5, "training.field_7": "another value"})
        run.set_tags({"mlflow.note.content": "text"})
        run.log_dict({"batch_size": 8}, "config/recipe.json")
        run.log_artifact(tmp_path / "plots", "report")
        run.log_dataset("train", digest="a" * 64, source_uri="gs://bucket/train*", context="training")
    client = MlflowClient(mlflow_uri)
    stored = client.get_run(run.run_id)
    assert stored.info.run_name == "bert pretraining"
    assert stored.info.status == "FINISHED"
    assert len(stored.data.params) == 151
    assert (stored.data.params["best/w0"], stored.data.params["training.field_7"]) == ("0.5", "7")
    assert {
        "kind": "pretraining",
        "model": "bert",
        "recipe": "demo",
        "attempt": "1",
    }.items() <= stored.data.tags.items()
    assert "package_version" in stored.data.tags
    assert len(client.get_metric_history(run.run_id, "train/loss")) == 2500
    assert stored.inputs.dataset_inputs[0].dataset.name == "train"
    folder = Path(client.download_artifacts(run.run_id, "", str(tmp_path)))
    assert json.loads((folder / "config" / "recipe.json").read_text()) == {"batch_size": 8}
    assert (folder / "report" / "loss.png").read_bytes() == b"picture"
    assert stored.info.artifact_uri.startswith(str(tmp_path / "artifacts"))
    experiment = client.get_experiment_by_name("yt8m").experiment_id
    assert run.url == f"http://ui:5000/#/experiments/{experiment}/runs/{run.run_id}?workflowType=machine_learning"


def test_mlflow_run_of_a_failed_block_is_failed(tracking: MlflowTracking, mlflow_uri: str):
    from mlflow import MlflowClient

    with pytest.raises(ValueError, match="bad batch"), tracking.run("name", kind="pretraining") as run:
        raise ValueError("bad batch")
    with pytest.raises(KeyboardInterrupt), tracking.run("name", kind="pretraining") as stopped:
        raise KeyboardInterrupt
    client = MlflowClient(mlflow_uri)
    assert client.get_run(run.run_id).info.status == "FAILED"
    assert client.get_run(stopped.run_id).info.status == "KILLED"


@pytest.mark.parametrize("kind", ["mlflow", "memory"])
def test_a_preempted_run_is_killed_and_resumed_by_its_id(kind: str, tracking: MlflowTracking, mlflow_uri: str):
    from mlflow import MlflowClient

    memory = MemoryTracking()
    opened: Any = {"mlflow": tracking, "memory": memory}[kind]

    def status() -> str:
        return MlflowClient(mlflow_uri).get_run(run.run_id).info.status if kind == "mlflow" else memory.runs[0].status

    with pytest.raises(TrainingPreempted), opened.run("name", kind="finetuning", params={"a": 1}) as run:
        run.log_metrics({"train/loss": 1.0}, 1)
        raise TrainingPreempted(1)
    assert status() == "KILLED"
    with opened.run("name", kind="finetuning", params={"a": 1}, resume=run.state()) as again:
        again.log_metrics({"train/loss": 0.5}, 2)
        assert again.run_id == run.run_id
        assert status() == "RUNNING"
    assert status() == "FINISHED"
    if kind == "mlflow":
        stored = MlflowClient(mlflow_uri).get_run(run.run_id)
        assert stored.data.tags["attempt"] == "2"
        assert stored.info.end_time >= stored.info.start_time
        points = MlflowClient(mlflow_uri).get_metric_history(run.run_id, "train/loss")
        assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]


def test_system_metrics_are_logged(tracking: MlflowTracking, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    monkeypatch.setattr("yt8m_assets.tracking.live.SYSTEM_SECONDS", 0.0)
    with tracking.run("name", kind="pretraining") as run:
        run.log_metrics({"a": 1.0}, 0)
    metrics = MlflowClient(mlflow_uri).get_run(run.run_id).data.metrics
    assert metrics["system/process_memory_usage_megabytes"] > 10
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/network_receive_megabytes"] == pytest.approx(0.0, abs=1000.0)  # since the run began
    assert not [name for name in metrics if "gpu" in name], "there is none here"


def test_a_table_is_one_that_mlflow_knows(tracking: MlflowTracking, mlflow_uri: str, request: pytest.FixtureRequest):
    import mlflow
    from mlflow import MlflowClient

    request.addfinalizer(partial(mlflow.set_tracking_uri, mlflow.get_tracking_uri()))
    mlflow.set_tracking_uri(mlflow_uri)  # where it looks for the runs of a table
    for value in (0.5, None):
        with tracking.run("name", kind="report") as run:
            run.log_table(["class_id", "name", "map"], [[3, 'Dog, "cat"', value], [4, "été", 0.25]], "per_class.json")
            run.log_table(["a"], [[1]], "other.json")
            run.log_table(["class_id", "name", "map"], [[3, 'Dog, "cat"', value], [4, "été", 0.25]], "per_class.json")
    table = MlflowClient(mlflow_uri).load_table("1", "per_class.json", extra_columns=["run_id"])
    assert table["name"].tolist() == ['Dog, "cat"', "été"] * 2
    assert table["map"].isna().sum() == 1
    assert table["map"].sum() == 1.0
    assert table["run_id"].nunique() == 2


def test_a_gpu_tells_its_use_memory_and_power(monkeypatch: pytest.MonkeyPatch):
    """As the driver's own types say it: milliwatts and bytes."""
    import pynvml

    used = pynvml.c_nvmlUtilization_t(gpu=87, memory=40)
    memory = pynvml.c_nvmlMemory_t(total=80 * 10**9, free=60 * 10**9, used=20 * 10**9)
    answers = {"Init": None, "DeviceGetCount": 1, "DeviceGetHandleByIndex": object(), "DeviceGetMemoryInfo": memory,
               "DeviceGetUtilizationRates": used, "DeviceGetPowerUsage": 350_000,
               "DeviceGetEnforcedPowerLimit": 700_000}  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", lambda *_, answer=answer: answer)
    monitor = SystemMonitor()
    monitor.metrics()
    used.gpu = 33
    metrics = monitor.metrics()
    assert metrics["system/gpu_0_utilization_percentage"] == 33, "each time that moment's, no mean of all"
    assert metrics["system/gpu_0_memory_usage_megabytes"] == 20_000
    assert metrics["system/gpu_0_memory_usage_percentage"] == 25
    assert metrics["system/gpu_0_power_usage_watts"] == 350
    assert metrics["system/gpu_0_power_usage_percentage"] == 50


def test_without_the_drivers_package_torch_tells_the_memory_of_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((index + 1) * 10**9, 4 * 10**9))
    metrics = SystemMonitor().metrics()
    assert metrics["system/gpu_0_memory_usage_megabytes"] == 3000
    assert metrics["system/gpu_1_memory_usage_percentage"] == 50


def test_champion_moves_only_to_a_better_model(tracking: MlflowTracking, mlflow_uri: str, tmp_path: Path):
    from mlflow import MlflowClient

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    client = MlflowClient(mlflow_uri)
    champions = []
    for metric in (0.70, 0.65, 0.72):
        with tracking.run("name", kind="finetuning", model="tiny", tags={"recipe": "demo"}) as run:
            version = run.register_model("yt8m-tiny", tmp_path / "model", metric=metric, description="A tiny model.")
        stored = client.get_model_version("yt8m-tiny", version)
        assert (stored.run_id, stored.description, stored.tags["recipe"]) == (run.run_id, "A tiny model.", "demo")
        assert float(stored.tags["metric"]) == metric
        assert client.get_run(run.run_id).data.tags["mlflow.note.content"] == "name, recipe demo\n\nA tiny model."
        champions.append(str(client.get_model_version_by_alias("yt8m-tiny", "champion").version))
    assert champions == ["1", "1", "3"]


@pytest.mark.parametrize("reason", ["deleted run", "other ratings", "nothing"])
def test_a_champion_counts_while_its_run_lives_and_its_hold_out_is_the_same(
    reason: str, tracking: MlflowTracking, mlflow_uri: str, tmp_path: Path
):
    from mlflow import MlflowClient

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    client = MlflowClient(mlflow_uri)
    for metric, ratings in ((0.9, "aaa"), (0.7, "bbb" if reason == "other ratings" else "aaa")):
        with tracking.run("n", kind="finetuning", model="tiny", tags={"parent.holdout_ratings": ratings}) as run:
            run.register_model("yt8m-tiny", tmp_path / "model", metric=metric)
        if metric == 0.9 and reason == "deleted run":
            client.delete_run(run.run_id)
    champion = client.get_model_version_by_alias("yt8m-tiny", "champion")
    assert champion.tags["metric"] == ("0.9" if reason == "nothing" else "0.7")


def test_of_two_processes_that_register_at_once_the_better_model_is_champion(
    tracking: MlflowTracking, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both compare with the champion before either moves the alias; the worse one moves it last."""
    from mlflow import MlflowClient

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    other = MlflowTracking(mlflow_uri, artifact_location=str(tmp_path / "artifacts"))
    set_alias = MlflowClient.set_registered_model_alias
    met = []

    def meet(client: MlflowClient, *arguments: str) -> None:
        if not met:
            met.append(True)
            with other.run("better", kind="finetuning", model="tiny") as run:
                run.register_model("yt8m-tiny", tmp_path / "model", metric=0.9)
        set_alias(client, *arguments)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", meet)
    with tracking.run("worse", kind="finetuning", model="tiny") as run:
        run.register_model("yt8m-tiny", tmp_path / "model", metric=0.8)
    assert met
    assert MlflowClient(mlflow_uri).get_model_version_by_alias("yt8m-tiny", "champion").tags["metric"] == "0.9"


@pytest.mark.parametrize(("name", "expected"), [("map@100000", "map_100000"), ("a//../b", "a/b"), ("", "unnamed")])
def test_names_are_made_legal(name: str, expected: str):
    assert mlflow_name(name) == expected


def test_importing_tracking_does_not_import_mlflow():
    import subprocess

    code = "import sys, yt8m_assets.tracking; assert not {'mlflow', 'torch', 'dagster'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1]).returncode == 0


def test_infinity_is_no_metric(tracking: MlflowTracking, mlflow_uri: str):
    from mlflow import MlflowClient

    with tracking.run("name", kind="pretraining") as run:
        run.log_metrics({"bad": math.inf}, 0)
    assert "bad" not in MlflowClient(mlflow_uri).get_run(run.run_id).data.metrics


def test_the_clock_is_mlflows():
    assert abs(now_milliseconds() / 1000 - time.time()) < 1


def test_a_model_that_the_registry_refuses_is_not_taken_for_registered():
    """One that is there is fine; anything else is not."""

    class Refusing:
        def __init__(self, code: str) -> None:
            self.code = code

        def create_registered_model(self, name: str, description: str) -> None:
            error = RuntimeError(self.code)
            error.error_code = self.code  # type: ignore[attr-defined]
            raise error

    client: Any = Refusing("RESOURCE_ALREADY_EXISTS")
    registry._ensure_registered(client, "yt8m-one", "One.")
    client = Refusing("PERMISSION_DENIED")
    with pytest.raises(RuntimeError, match="PERMISSION_DENIED"):
        registry._ensure_registered(client, "yt8m-one", "One.")


def test_the_folder_of_a_database_is_made(tmp_path: Path):
    path = tmp_path / "new" / "deep" / "mlflow.db"
    server = MlflowTracking(f"sqlite:///{path}")
    assert server.client().get_experiment_by_name("nothing") is None
    assert path.is_file()
