"""A trained model as MLflow loads it: 5-second windows of frames in, class probabilities out.

MLflow stores "models from code": the file entry.py, run when the model is loaded, and our weights
(safetensors), description (JSON) and code beside it: it loads where this project is not installed. Nothing is pickled.
"""

import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import DataError

if TYPE_CHECKING:
    import numpy as np

FILES = ("model.json", "weights.safetensors")
_NOT_FOR_US = ("Any type hint is inferred as AnyType", "An input example was not provided")
"""Warnings of MLflow about its own classes, and about an example that the signature makes unnecessary."""
REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors")
"""What the code that travels with a model needs of others, in the versions it was saved with."""


def save_servable(model_path: Path, target: Path) -> Path:
    """Write a folder that `mlflow.pyfunc.load_model` takes, from one with `model.json` and `weights.safetensors`.

    Input: tensor uint8 [S, T, F], dequantised and normalised by the model itself (SPEC section 1).
    Parameter num_frames: integers, how many of its T frames each segment has; by default all of them.
    Output: tensor float32 [S, C], probabilities of all classes in vocabulary order.
    """
    import numpy as np

    import models
    import yt8m_assets

    for text in _NOT_FOR_US:
        warnings.filterwarnings("ignore", message=f".*{text}")
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    description = json.loads((model_path / "model.json").read_text(encoding="utf-8"))
    num_features = sum(description["feature_sizes"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, num_features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, description["num_classes"]))]),
        params=ParamSchema([ParamSpec("num_frames", "long", default=[], shape=(-1,))]),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "model"
        files.mkdir()
        for name in FILES:
            shutil.copyfile(model_path / name, files / name)
        save_model(
            str(target),
            python_model=str(Path(__file__).with_name("entry.py")),
            artifacts={"model": str(files)},
            signature=signature,
            code_paths=[str(Path(path)) for package in (models, yt8m_assets) for path in package.__path__],
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
            metadata={key: description[key] for key in ("architecture", "num_classes", "feature_sizes")},
        )
    return target


class SegmentClassifier:
    """A model of ours that takes bytes and gives probabilities, on the CPU or the first CUDA device."""

    batch_size = 512

    def __init__(self, folder: Path) -> None:
        """`folder` holds `model.json` and `weights.safetensors`. Raises CorruptArtifactError for damaged files."""
        import torch

        from yt8m_assets.training.model_files import read_model

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = read_model(folder, self.device, folder)

    def predict(self, frames: "np.ndarray", num_frames: "Sequence[int] | np.ndarray" = ()) -> "np.ndarray":
        """uint8 [S, T, F], up to T frames of each of S segments -> probabilities float32 [S, C].

        num_frames [S]: how many of its rows are frames of each segment, 1 to T, the rest is padding (a byte 0 is a
        feature); by default all are frames. Raises DataError when the arguments are not of that type and shape.
        """
        import numpy as np
        import torch

        from yt8m_assets.data.records.features import model_inputs, valid_rows

        num_features = sum(self.model.feature_sizes)
        if frames.dtype != np.uint8 or frames.ndim != 3 or frames.shape[1] == 0 or frames.shape[2] != num_features:
            raise DataError(f"frames {frames.dtype} {frames.shape}: expected uint8 [segments, frames, {num_features}]")
        size, longest = frames.shape[:2]
        counts = np.asarray(num_frames) if len(num_frames) else np.full(size, longest)
        if counts.shape != (size,) or counts.dtype.kind not in "iu" or ((counts < 1) | (counts > longest)).any():
            raise DataError(f"num_frames = {num_frames}: expected {size} integers from 1 to {longest}, one a segment")
        found = [np.empty((0, self.model.num_classes), np.float32)]
        counts_S = torch.from_numpy(counts.astype(np.int64))
        with torch.inference_mode():
            parts = (tensor.split(self.batch_size) for tensor in (torch.from_numpy(np.array(frames)), counts_S))
            for part, part_counts in zip(*parts, strict=True):
                bytes_STF, counts_B = part.to(self.device), part_counts.to(self.device)
                output = self.model(model_inputs(bytes_STF, valid_rows(counts_B, longest)), counts_B)
                found.append(output.probabilities.float().cpu().numpy())
        return np.concatenate(found)
