"""A trained model as one file for other programs: torch.export (`.pt2`) or ONNX (`.onnx`).

Both take what the served model takes, frames uint8 [B, T, F] and num_frames int64 [B], and give its probabilities
[B, C]; the batch may have any size. What was exported is run on random input and compared with the model, before
anything is written.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.layers import l2_normalize
from yt8m_assets.data.records.features import dequantise_frames, model_inputs, valid_rows
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.storage import atomic_write
from yt8m_assets.training.model_files import ModelSpec, read_model

if TYPE_CHECKING:
    from torch.export import ExportedProgram

INPUTS, OUTPUT = ("frames", "num_frames"), "probabilities"
DESCRIPTION = "yt8m.json"
"""Name of the description inside a `.pt2` file; in ONNX its fields are metadata properties."""
TOLERANCE = 1e-5
"""By how much a probability may differ from the model's."""
_CHECKED_BATCHES = (1, 7)
_TRACED_BATCH = 3
"""Not 1: a batch of one would be taken for a fixed size."""
_OPSET = 20
Scorer = Callable[[Tensor, Tensor], Tensor]


class ByteModel(nn.Module):
    """A model with its preparation of the bytes inside, for any batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """uint8 [B, T, F] and int64 [B] -> probabilities float32 [B, C], as `SegmentClassifier.predict`."""
        features = dequantise_frames(frames, valid_rows(num_frames, frames.shape[1]))
        return self.model(l2_normalize(features, dim=2), num_frames).probabilities


def export_model(model_path: Path, target: Path, num_frames: int, facts: Mapping[str, Any]) -> float:
    """Write the model of a folder (`model.json`, `weights.safetensors`) as one file; atomic.

    num_frames is T, the rows of frames that it takes; `facts` go into the file beside the description of its inputs.
    Returns the largest difference from the model that was seen. Raises ConfigError for another suffix than `.pt2` and
    `.onnx`, for a T that the model does not take and for a missing package, DataError where the two differ.
    """
    write = {".pt2": _write_program, ".onnx": _write_onnx}.get(target.suffix)
    if write is None:
        raise ConfigError(f"{target}: a model is written as .pt2 (torch.export) or .onnx")
    if num_frames < 1:
        raise ConfigError(f"frames = {num_frames}: must be at least 1")
    spec = ModelSpec.read(model_path)
    model = read_model(model_path, "cpu", model_path)
    program = _trace(model, num_frames, sum(spec.feature_sizes))
    description = {
        **facts,
        "architecture": spec.architecture,
        "frames": f"uint8 [batch, {num_frames}, {sum(spec.feature_sizes)}], quantised as the data set is",
        "num_frames": f"int64 [batch], from 1 to {num_frames}: how many of a segment's rows are frames",
        "probabilities": f"float32 [batch, {spec.num_classes}], in vocabulary order",
        "torch": torch.__version__,
    }
    with atomic_write(target) as temporary:
        scorer = write(program, temporary, description)
        difference = largest_difference(model, scorer, num_frames)
        if not difference <= TOLERANCE:
            raise DataError(f"{target}: differs from the model by {difference:.2g} in a probability; not written")
    return difference


def _trace(model: nn.Module, num_frames: int, num_features: int) -> "ExportedProgram":
    frames = torch.zeros(_TRACED_BATCH, num_frames, num_features, dtype=torch.uint8)
    counts = torch.full((_TRACED_BATCH,), num_frames)
    batch = torch.export.Dim("batch")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        try:
            model(model_inputs(frames, valid_rows(counts, num_frames)), counts)
        except ValueError as error:
            raise ConfigError(f"frames = {num_frames}: {error}") from error
        return torch.export.export(ByteModel(model), (frames, counts), dynamic_shapes=({0: batch}, {0: batch}))


def largest_difference(model: nn.Module, scorer: Scorer, num_frames: int, seed: int = 0) -> float:
    """Largest absolute difference in a probability over random bytes, segments of any length, and batches of sizes."""
    generator, found = torch.Generator().manual_seed(seed), 0.0
    num_features = sum(model.feature_sizes)  # type: ignore[arg-type]
    for size in _CHECKED_BATCHES:
        frames = torch.randint(0, 256, (size, num_frames, num_features), dtype=torch.uint8, generator=generator)
        counts = torch.randint(1, num_frames + 1, (size,), generator=generator)
        with torch.no_grad():
            own = model(model_inputs(frames, valid_rows(counts, num_frames)), counts).probabilities
            found = max(found, float((own - scorer(frames, counts)).abs().max()))
    return found


def _write_program(program: "ExportedProgram", path: Path, description: Mapping[str, Any]) -> Scorer:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(description, indent=1)})
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    return torch.export.load(buffer).module()


def _write_onnx(program: "ExportedProgram", path: Path, description: Mapping[str, Any]) -> Scorer:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch writes ONNX with
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}: pip install '.[onnx]'") from error

    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)  # it misses operators of torchvision, which nothing here has
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            made: Any = torch.onnx.export(
                program,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        registration.setLevel(before)
    made.model.metadata_props.update({name: str(value) for name, value in description.items()})
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def score(frames: Tensor, num_frames: Tensor) -> Tensor:
        given = {"frames": frames.numpy(), "num_frames": num_frames.numpy()}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return score
