"""A registered model is loaded by mlflow.pyfunc and gives the probabilities of our own model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from yt8m_assets.data.features import model_inputs
from yt8m_assets.errors import DataError
from yt8m_assets.serving import SegmentClassifier, save_servable
from yt8m_assets.tracking import MlflowTracking
from yt8m_assets.training.artifacts import load_model


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 1152), dtype=np.uint8)


def expected(store, frames: np.ndarray) -> np.ndarray:
    model = load_model(store, store.require("finetuned_model/one"))
    inputs = model_inputs(torch.from_numpy(frames), torch.ones(frames.shape[:2], dtype=torch.bool))
    with torch.no_grad():
        return model(inputs, torch.full((len(frames),), frames.shape[1])).probabilities.numpy()


def test_classifier_scores_like_the_model_in_any_batch(graph, frames):
    _, store = graph
    classifier = SegmentClassifier(store.fetch(store.require("finetuned_model/one")))
    classifier.batch_size = 3
    np.testing.assert_allclose(classifier.predict(frames), expected(store, frames), atol=1e-6)
    assert classifier.predict(frames[:0]).shape == (0, 8)


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
    assert described["flavors"]["python_function"]["model_code_path"].endswith("serving_entry.py")
    assert described["metadata"]["architecture"] == "bert_mean_l2h12"


def test_a_registered_champion_is_loaded_by_pyfunc(graph, frames, mlflow_uri: str, tmp_path: Path):
    import mlflow

    _, store = graph
    tracking = MlflowTracking(mlflow_uri, artifact_location=str(tmp_path / "art"), spool_path=tmp_path / "spool")
    with tracking.run("fine-tuning", kind="finetuning", model="one") as run:
        folder = store.fetch(store.require("finetuned_model/one"))
        assert run.register_model("yt8m-one", folder, metric=0.5, description="Tiny one.") == "1"
    mlflow.set_tracking_uri(mlflow_uri)
    try:
        model = mlflow.pyfunc.load_model("models:/yt8m-one@champion")
    finally:
        mlflow.set_tracking_uri(None)
    np.testing.assert_allclose(model.predict(frames), expected(store, frames), atol=1e-6)
    assert model.metadata.signature is not None
