"""Exported models score as the models do, in any batch, and where this project is not installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models import list_models
from tests.models.small import NUM_CLASSES, SIZES, small_model, small_options
from yt8m_assets.data.records.features import model_inputs, valid_rows
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.serving import export
from yt8m_assets.training.model_files import ModelSpec, write_model

NUM_FRAMES = [5, 1, 3, 4, 2, 5]
KINDS = ("bert_l2h12", "bert_cross_attn_l2h8", "gated_netvlad_h1024c16", "mix_nextvlad_iter60")
"""One of each architecture."""
OTHERS = [pytest.param(key, marks=pytest.mark.slow) for key in list_models() if key != KINDS[0]]
KEYS = [KINDS[0], "frame_scorer", *OTHERS]


def saved(folder: Path, key: str, **options: object) -> tuple[Path, torch.nn.Module]:
    """A folder with a small model, and the model."""
    model = small_model(key, **options).eval()
    overrides = {**small_options(key), **options}
    spec = ModelSpec(
        architecture=key, overrides=overrides, num_classes=NUM_CLASSES, feature_sizes=SIZES, max_frames=300
    )
    folder.mkdir()
    write_model(folder, spec, dict(model.state_dict()), {"steps": 1})
    return folder, model


def batch(num_frames: int = 5) -> tuple[np.ndarray, np.ndarray]:
    frames = np.random.default_rng(1).integers(0, 256, (6, num_frames, sum(SIZES)), dtype=np.uint8)
    return frames, np.minimum(NUM_FRAMES, num_frames)


def expected(model: torch.nn.Module, frames: np.ndarray, counts: np.ndarray) -> np.ndarray:
    counts_B = torch.from_numpy(counts)
    with torch.no_grad():
        return model(
            model_inputs(torch.from_numpy(frames), valid_rows(counts_B, frames.shape[1])), counts_B
        ).probabilities.numpy()


@pytest.mark.parametrize("key", KEYS)
def test_a_program_scores_like_the_model(key: str, tmp_path: Path):
    folder, model = saved(tmp_path / "model", key)
    path, extra = tmp_path / "model.pt2", {export.DESCRIPTION: ""}
    assert export.export_model(folder, path, 5, {"recipe": "small"}) < 1e-5
    program = torch.export.load(path, extra_files=extra).module()
    frames, counts = batch()
    found = program(torch.from_numpy(frames), torch.from_numpy(counts)).detach().numpy()
    np.testing.assert_allclose(found, expected(model, frames, counts), atol=1e-6)
    description = json.loads(extra[export.DESCRIPTION])
    assert (description["recipe"], description["architecture"]) == ("small", key)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "model.pt2"]


@pytest.mark.parametrize("key", [KINDS[0], *(pytest.param(key, marks=pytest.mark.slow) for key in KINDS[1:])])
def test_onnx_scores_like_the_model_without_torch(key: str, tmp_path: Path):
    folder, model = saved(tmp_path / "model", key)
    export.export_model(folder, tmp_path / "model.onnx", 5, {"recipe": "small"})
    frames, counts = batch()
    np.savez(tmp_path / "batch.npz", frames=frames, num_frames=counts)
    script = (
        "import sys, numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
        "given = dict(np.load('batch.npz'))\n"
        "np.save('all.npy', session.run(['probabilities'], given)[0])\n"
        "np.save('one.npy', session.run(None, {name: values[:1] for name, values in given.items()})[0])\n"
        "assert session.get_modelmeta().custom_metadata_map['recipe'] == 'small'\n"
        "assert 'torch' not in sys.modules and 'yt8m_assets' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    own = expected(model, frames, counts)
    np.testing.assert_allclose(np.load(tmp_path / "all.npy"), own, atol=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), own[:1], atol=1e-6)


@pytest.mark.parametrize(
    "pooling", ["mean", *(pytest.param(name, marks=pytest.mark.slow) for name in ("concat", "last", "attention"))]
)
def test_padding_is_left_out_of_an_export_where_the_model_leaves_it_out(pooling: str, tmp_path: Path):
    folder, model = saved(tmp_path / "model", "bert_l2h12", pooling=pooling, mask_padding=True)
    export.export_model(folder, tmp_path / "model.pt2", 5, {})
    frames, counts = batch()
    program = torch.export.load(tmp_path / "model.pt2").module()
    found = program(torch.from_numpy(frames), torch.from_numpy(counts)).detach().numpy()
    np.testing.assert_allclose(found, expected(model, frames, counts), atol=1e-6)


def test_windows_of_another_length(tmp_path: Path):
    folder, model = saved(tmp_path / "mean", "bert_mean_l2h12")
    export.export_model(folder, tmp_path / "model.pt2", 30, {})
    frames, counts = batch(30)
    found = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(frames), torch.from_numpy(counts))
    np.testing.assert_allclose(found.detach().numpy(), expected(model, frames, counts), atol=1e-6)
    folder, _ = saved(tmp_path / "concat", "bert_l2h12")
    with pytest.raises(ConfigError, match=r"frames = 30: .*'concat' was built for 5"):
        export.export_model(folder, tmp_path / "other.pt2", 30, {})
    with pytest.raises(ConfigError, match="frames = 0: must be at least 1"):
        export.export_model(folder, tmp_path / "other.pt2", 0, {})


def test_what_is_refused_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another format, a missing package, and an export that does not score as the model."""
    folder, _ = saved(tmp_path / "model", "bert_mean_l2h12")
    with pytest.raises(ConfigError, match=r"model\.pt: a model is written as \.pt2 .* or \.onnx"):
        export.export_model(folder, tmp_path / "model.pt", 5, {})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ConfigError, match=r"needs the package onnxruntime: pip install '\.\[onnx\]'"):
            export.export_model(folder, tmp_path / "model.onnx", 5, {})
    monkeypatch.setattr(export, "l2_normalize", lambda frames, dim: frames)
    for name in ("model.pt2", "model.onnx"):
        with pytest.raises(DataError, match=rf"{name}: differs from the model by 0\.\d+ in a probability; not written"):
            export.export_model(folder, tmp_path / name, 5, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
