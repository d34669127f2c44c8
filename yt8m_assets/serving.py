"""A trained model as MLflow loads it: 5-second windows of frames in, class probabilities out.

MLflow stores "models from code": the file serving_entry.py, run when the model is loaded, and our weights
(safetensors) and description (JSON) beside it. Nothing is pickled.
"""

import json
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

INPUT_NAME = "frames"
REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "yt8m-assets")


def save_servable(model_path: Path, target: Path) -> Path:
    """Write a folder that `mlflow.pyfunc.load_model` takes, from one with `model.json` and `weights.safetensors`.

    Input: tensor uint8 [S, T, F], dequantised and normalised by the model itself (SPEC section 1).
    Output: tensor float32 [S, C], probabilities of all classes in vocabulary order.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    description = json.loads((model_path / "model.json").read_text(encoding="utf-8"))
    num_features = sum(description["feature_sizes"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, num_features), INPUT_NAME)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, description["num_classes"]))]),
    )
    save_model(
        str(target),
        python_model=str(Path(__file__).with_name("serving_entry.py")),
        artifacts={"model": str(model_path)},
        signature=signature,
        pip_requirements=list(REQUIREMENTS),
        metadata={key: description[key] for key in ("architecture", "num_classes", "feature_sizes")},
    )
    return target
