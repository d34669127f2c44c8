"""A registered model is loaded by mlflow.pyfunc and gives the probabilities of our own model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from tests.emulator import wait_for_port
from tests.ports import HOST, free_port
from yt8m_assets.data.records.features import model_inputs, valid_rows
from yt8m_assets.errors import DataError
from yt8m_assets.serving import SegmentClassifier, save_servable
from yt8m_assets.stages.training import load_model
from yt8m_assets.tracking import MlflowTracking


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 1152), dtype=np.uint8)


def expected(store, frames: np.ndarray, num_frames: list[int] | None = None) -> np.ndarray:
    model = load_model(store, store.require("finetuned_model/one"))
    counts = torch.tensor(num_frames or [frames.shape[1]] * len(frames))
    inputs = model_inputs(torch.from_numpy(frames), valid_rows(counts, frames.shape[1]))
    with torch.no_grad():
        return model(inputs, counts).probabilities.numpy()


def test_classifier_scores_like_the_model_in_any_batch(graph, frames):
    _, store = graph
    classifier = SegmentClassifier(store.fetch(store.require("finetuned_model/one")))
    classifier.batch_size = 3
    np.testing.assert_allclose(classifier.predict(frames), expected(store, frames), atol=1e-6)
    assert classifier.predict(frames[:0]).shape == (0, 8)


def test_a_short_segment_says_how_many_frames_it_has(graph, frames):
    """Its padding is not frames of zero bytes: those are features."""
    _, store = graph
    classifier = SegmentClassifier(store.fetch(store.require("finetuned_model/one")))
    classifier.batch_size = 3
    num_frames = [5, 3, 1, 5, 2, 4, 5]
    found = classifier.predict(frames, num_frames)
    np.testing.assert_allclose(found, expected(store, frames, num_frames), atol=1e-6)
    assert np.abs(found - classifier.predict(frames))[[1, 2, 4, 5]].max(1).min() > 1e-6
    np.testing.assert_allclose(classifier.predict(frames, [5] * 7), classifier.predict(frames), atol=1e-6)
    for wrong in ([5], [5, 5, 5, 5, 5, 5, 6], [0] + [5] * 6, [2.5] * 7):
        with pytest.raises(DataError, match="expected 7 integers from 1 to 5"):
            classifier.predict(frames, wrong)


def test_it_loads_where_the_project_is_not_installed(graph, frames, tmp_path: Path):
    """By MLflow and the packages it requires: ours comes from the model's own folder."""
    import mlflow

    folder = save_servable(graph[1].fetch(graph[1].require("finetuned_model/one")), tmp_path / "servable")
    requirements = (folder / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in requirements] == ["mlflow", "torch", "numpy", "safetensors"]
    assert all("+" not in line and "==" in line for line in requirements)
    assert not list(folder.rglob("__pycache__"))
    np.save(tmp_path / "frames.npy", frames)
    program = (
        "import sys, json\n"
        f"sys.path.append({str(Path(mlflow.__file__).parents[1])!r})\n"  # no .pth file of it is read
        "import importlib.util, numpy as np\n"
        "assert importlib.util.find_spec('yt8m_assets') is None and importlib.util.find_spec('models') is None\n"
        "import mlflow\n"
        f"model = mlflow.pyfunc.load_model({str(folder)!r})\n"
        "frames = np.load('frames.npy')\n"
        "np.save('all.npy', model.predict(frames))\n"
        "np.save('some.npy', model.predict(frames, params={'num_frames': [5, 3, 1, 5, 2, 4, 5]}))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), expected(graph[1], frames), atol=1e-6)
    counted = expected(graph[1], frames, [5, 3, 1, 5, 2, 4, 5])
    np.testing.assert_allclose(np.load(tmp_path / "some.npy"), counted, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.zeros((2, 5, 1152), np.float32), np.zeros((2, 5, 1024), np.uint8)])
def test_wrong_frames_are_refused(graph, wrong):
    classifier = SegmentClassifier(graph[1].fetch(graph[1].require("finetuned_model/one")))
    with pytest.raises(DataError, match=r"expected uint8 \[segments, frames, 1152\]"):
        classifier.predict(wrong)


def test_nothing_is_pickled_and_the_signature_is_there(graph, tmp_path: Path):
    import yaml

    folder = save_servable(graph[1].fetch(graph[1].require("finetuned_model/one")), tmp_path / "servable")
    assert not list(folder.rglob("*.pkl"))
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["signature"]["inputs"]
    assert described["flavors"]["python_function"]["model_code_path"].endswith("entry.py")
    assert described["metadata"]["architecture"] == "bert_mean_l2h12"


def register(graph, mlflow_uri: str, tmp_path: Path):
    """The store, whose model is registered as `yt8m-one`."""
    _, store = graph
    tracking = MlflowTracking(mlflow_uri, artifact_location=str(tmp_path / "art"), servable=save_servable)
    with tracking.run("fine-tuning", kind="finetuning", model="one") as run:
        folder = store.fetch(store.require("finetuned_model/one"))
        assert run.register_model("yt8m-one", folder, metric=0.5, description="Tiny one.") == "1"
    return store


def test_a_registered_champion_is_loaded_by_pyfunc(graph, frames, mlflow_uri: str, tmp_path: Path):
    import mlflow

    store = register(graph, mlflow_uri, tmp_path)
    mlflow.set_tracking_uri(mlflow_uri)
    try:
        model = mlflow.pyfunc.load_model("models:/yt8m-one@champion")
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_allclose(model.predict(frames), expected(store, frames), atol=1e-6)
    outputs = model.metadata.signature.outputs.to_dict()
    assert [output["tensor-spec"]["shape"] for output in outputs] == [(-1, expected(store, frames).shape[1])]


@pytest.mark.slow
def test_a_registered_champion_is_served_over_http(graph, frames, mlflow_uri: str, tmp_path: Path):
    """`mlflow models serve` of docs/export.md, from a folder that is not the project's."""
    store = register(graph, mlflow_uri, tmp_path)
    port, scripts = free_port(), Path(sys.executable).parent
    chosen = ("-m", "models:/yt8m-one@champion", "--env-manager", "local", "-h", HOST, "-p", str(port))
    environment = {"PATH": f"{scripts}:{os.environ['PATH']}", "MLFLOW_TRACKING_URI": mlflow_uri, "HOME": str(tmp_path)}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [scripts / "mlflow", "models", "serve", *chosen],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_for_port(port, server, seconds=120)
        for params in ({}, {"params": {"num_frames": [5, 3, 1, 5, 2, 4, 5]}}):
            body = json.dumps({"inputs": frames.tolist(), **params}).encode()
            asked = Request(f"http://{HOST}:{port}/invocations", body, {"Content-Type": "application/json"})
            with urlopen(asked, timeout=60) as answer:
                found = np.array(json.load(answer)["predictions"])
            counts = params.get("params", {}).get("num_frames")
            np.testing.assert_allclose(found, expected(store, frames, counts), atol=1e-6)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
