"""Named tensors in safetensors files: the one format of weights here; nothing that can hold code is ever loaded."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, StorageError


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
