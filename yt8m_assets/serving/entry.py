"""The code MLflow runs when it loads one of our models (see classifier.py); weights and description lie beside it."""

from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from yt8m_assets.serving import SegmentClassifier


class ServedModel(PythonModel):
    """YouTube-8M segment classifier: frames uint8 [S, T, F] in, class probabilities float32 [S, C] out."""

    def load_context(self, context: Any) -> None:
        """Load the weights."""
        from pathlib import Path

        self.classifier = SegmentClassifier(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Probabilities of all classes of each segment."""
        return self.classifier.predict(model_input, (params or {}).get("num_frames", ()))


set_model(ServedModel())
