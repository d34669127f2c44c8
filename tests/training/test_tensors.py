from pathlib import Path

import pytest
import torch
from torch import nn

from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, StorageError
from yt8m_assets.training.tensors import load_weights, read_tensors, write_tensors


def test_tensors_come_back_exactly_and_equal_ones_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    write_tensors(tmp_path / "b.safetensors", dict(reversed(tensors.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(value, found[name]) and value.dtype == found[name].dtype for name, value in tensors.items())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/w\.safetensors: cannot write 12 bytes"):
        write_tensors(tmp_path / "none" / "w.safetensors", {"w": torch.ones(3)})
    with pytest.raises(CorruptArtifactError, match=r"none/w\.safetensors"):
        read_tensors(tmp_path / "none" / "w.safetensors")


def test_weights_that_do_not_fit_are_listed_and_nothing_is_copied() -> None:
    model = nn.Linear(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointMismatchError) as caught:
        load_weights(model, {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "here")
    text = str(caught.value)
    assert text.startswith("here: does not fit the model: ")
    assert "bias: missing" in text
    assert "extra: not of this model" in text
    assert "weight: [3, 3], the model has [3, 2]" in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
