"""The files of a model: `weights.safetensors`, `model.json`, `training.json`, `optimizer.safetensors` to go on from.

Tensors are in safetensors files, the one format of weights here; nothing that can hold code is ever loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import create_model
from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, StorageError, other_schema
from yt8m_assets.training.randomness import isolated_randomness

SCHEMA = 1
WEIGHTS, OPTIMIZER, MODEL, TRAINING = "weights.safetensors", "optimizer.safetensors", "model.json", "training.json"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What `create_model` needs to build a model again."""

    architecture: str
    """Registered name."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Options that differ from the architecture's defaults."""
    num_classes: int
    """Size of the vocabulary."""
    feature_sizes: tuple[int, int]
    """Bytes per second of rgb and audio."""
    max_frames: int
    """Frames of a video that are used."""

    def build(self, seed: int = 0) -> nn.Module:
        """A new model on the CPU; the same seed gives the same weights, and no global generator is touched."""
        with isolated_randomness(torch.device("cpu"), seed):
            return create_model(
                self.architecture,
                num_classes=self.num_classes,
                feature_sizes=self.feature_sizes,
                **self.overrides,
            )

    def write(self, folder: Path) -> None:
        """Write `model.json`."""
        content = {"schema": SCHEMA, **{name: getattr(self, name) for name in self.__dataclass_fields__}}
        (folder / MODEL).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "ModelSpec":
        """Read `model.json`. Raises CorruptArtifactError naming the file and what is wrong."""
        values = read_json(folder / MODEL)
        values.pop("schema")
        try:
            return cls(**{**values, "feature_sizes": tuple(values["feature_sizes"])})
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{folder / MODEL}: {error}; redo the artifact") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of this schema. Raises CorruptArtifactError naming path and problem."""
    try:
        values = json.loads(path.read_text())
        schema = values["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path}: not readable ({error}); redo the artifact") from error
    if schema != SCHEMA:
        raise CorruptArtifactError(other_schema(str(path), schema, SCHEMA, "redo it"))
    return values


def write_model(
    folder: Path,
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files of a model artifact."""
    spec.write(folder)
    write_tensors(folder / WEIGHTS, weights)
    if optimizer is not None:
        write_tensors(folder / OPTIMIZER, optimizer)
    content = {"schema": SCHEMA, **training}
    (folder / TRAINING).write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_model(folder: Path, device: torch.device | str, source: object) -> nn.Module:
    """The model of such a folder, in evaluation mode on a device.

    Raises CorruptArtifactError when a file is damaged, CheckpointMismatchError when weights and architecture differ.
    """
    return build_with_weights(ModelSpec.read(folder), folder / WEIGHTS, device, source).eval()


def build_with_weights(spec: ModelSpec, path: Path, device: torch.device | str, source: object) -> nn.Module:
    """A model with the weights and statistics of a file. Errors as `read_model`."""
    with torch.device("meta"):  # initial weights would be drawn for nothing
        model = spec.build()
    tensors = read_tensors(path)
    check_weights(model, tensors, source)
    model.load_state_dict({name: value.to(device, copy=True) for name, value in tensors.items()}, assign=True)
    return model


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device; equal tensors give equal bytes. Raises StorageError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    values = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    size = sum(value.numel() * value.element_size() for value in values.values())
    try:
        save_file(values, path)
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: cannot write {size:,} bytes: {error}; free some space or fix the permissions and run again"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises CorruptArtifactError naming the path for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise CorruptArtifactError(f"{path}: weights are read from .safetensors files only (others could hold code)")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, MemoryError, json.JSONDecodeError) as error:
        raise CorruptArtifactError(f"{path}: not a whole safetensors file ({error}); redo the artifact") from error


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Copy weights and statistics into a model. Raises CheckpointMismatchError listing every tensor that differs."""
    check_weights(model, tensors, source)
    for name, value in model.state_dict().items():
        value.copy_(tensors[name])


def check_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise CheckpointMismatchError listing every tensor that is missing, unknown or of another shape."""
    own = model.state_dict()
    problems = [f"{name}: missing" for name in own if name not in tensors]
    problems += [f"{name}: not of this model" for name in tensors if name not in own]
    problems += [
        f"{name}: {list(tensors[name].shape)}, the model has {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise CheckpointMismatchError(f"{source}: does not fit the model: {shown}")
