"""A trained model as MLflow loads it: 5-second windows of frames in, class probabilities out.

MLflow stores "models from code": the file serving_entry.py, run when the model is loaded, and our weights
(safetensors) and description (JSON) beside it. Nothing is pickled.
"""

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.errors import DataError

if TYPE_CHECKING:
    import numpy as np

FILES = ("model.json", "weights.safetensors")
_NOT_FOR_US = ("Any type hint is inferred as AnyType", "An input example was not provided")
"""Warnings of MLflow about its own classes, and about an example that the signature makes unnecessary."""
REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "yt8m-assets")


def save_servable(model_path: Path, target: Path) -> Path:
    """Write a folder that `mlflow.pyfunc.load_model` takes, from one with `model.json` and `weights.safetensors`.

    Input: tensor uint8 [S, T, F], dequantised and normalised by the model itself (SPEC section 1).
    Output: tensor float32 [S, C], probabilities of all classes in vocabulary order.
    """
    import numpy as np

    for text in _NOT_FOR_US:
        warnings.filterwarnings("ignore", message=f".*{text}")
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    description = json.loads((model_path / "model.json").read_text(encoding="utf-8"))
    num_features = sum(description["feature_sizes"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, num_features))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, description["num_classes"]))]),
    )
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "model"
        files.mkdir()
        for name in FILES:
            shutil.copyfile(model_path / name, files / name)
        save_model(
            str(target),
            python_model=str(Path(__file__).with_name("serving_entry.py")),
            artifacts={"model": str(files)},
            signature=signature,
            pip_requirements=list(REQUIREMENTS),
            metadata={key: description[key] for key in ("architecture", "num_classes", "feature_sizes")},
        )
    return target


class SegmentClassifier:
    """A model of ours that takes bytes and gives probabilities, on the CPU or the first CUDA device."""

    batch_size = 512

    def __init__(self, folder: Path) -> None:
        """`folder` holds `model.json` and `weights.safetensors`. Raises CorruptArtifactError for damaged files."""
        import torch

        from yt8m_assets.training.artifacts import WEIGHTS, ModelSpec
        from yt8m_assets.training.tensors import load_weights, read_tensors

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = ModelSpec.read(folder).build()
        load_weights(model, read_tensors(folder / WEIGHTS), str(folder))
        self.model: Any = model.to(self.device).eval()

    def predict(self, frames: "np.ndarray") -> "np.ndarray":
        """uint8 [S, T, F], T frames of each of S segments -> probabilities float32 [S, C].

        Raises DataError when the frames are not of that type and shape.
        """
        import numpy as np
        import torch

        from yt8m_assets.data.features import model_inputs

        num_features = sum(self.model.feature_sizes)
        if frames.dtype != np.uint8 or frames.ndim != 3 or frames.shape[1] == 0 or frames.shape[2] != num_features:
            raise DataError(f"frames {frames.dtype} {frames.shape}: expected uint8 [segments, frames, {num_features}]")
        found = [np.empty((0, self.model.num_classes), np.float32)]
        with torch.inference_mode():
            for part in torch.from_numpy(np.array(frames)).split(self.batch_size):
                bytes_STF = part.to(self.device)
                valid = torch.ones(bytes_STF.shape[:2], dtype=torch.bool, device=self.device)
                num_frames = torch.full((len(part),), part.shape[1], dtype=torch.int64, device=self.device)
                output = self.model(model_inputs(bytes_STF, valid), num_frames)
                found.append(output.probabilities.float().cpu().numpy())
        return np.concatenate(found)
