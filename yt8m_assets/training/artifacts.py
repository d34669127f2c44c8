"""The files of a model artifact: `weights.safetensors`, `model.json`, `training.json` and, to go on training from it,
`optimizer.safetensors`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import create_model
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.randomness import isolated_randomness
from yt8m_assets.training.tensors import check_weights, read_tensors, write_tensors

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

    @classmethod
    def of(cls, recipe: Recipe, model_key: str) -> "ModelSpec":
        """The model of a recipe's row."""
        model = recipe.model(model_key)
        return cls(
            architecture=model.architecture,
            overrides=dict(model.overrides),
            num_classes=recipe.data.num_classes,
            feature_sizes=tuple(recipe.data.feature_sizes),  # type: ignore[arg-type]
            max_frames=recipe.data.max_frames,
        )

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
        raise CorruptArtifactError(f"{path}: written as schema {schema}, this version reads {SCHEMA}; redo it")
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


def load_model(store: ArtifactStore, manifest: Manifest, device: torch.device | str = "cpu") -> nn.Module:
    """The model of a pretrained_model or finetuned_model artifact, in evaluation mode on a device.

    Raises CorruptArtifactError when a file is damaged, CheckpointMismatchError when weights and architecture differ.
    """
    folder = store.fetch(manifest, only=(MODEL, WEIGHTS))
    with torch.device("meta"):  # initial weights would be drawn for nothing
        model = ModelSpec.read(folder).build()
    tensors = read_tensors(folder / WEIGHTS)
    check_weights(model, tensors, manifest.key)
    model.load_state_dict({name: value.to(device, copy=True) for name, value in tensors.items()}, assign=True)
    return model.eval()
