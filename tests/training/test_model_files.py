from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from yt8m_assets.errors import CheckpointMismatchError, CorruptArtifactError, StorageError
from yt8m_assets.training.model_files import (
    ModelSpec,
    load_weights,
    read_model,
    read_tensors,
    write_model,
    write_tensors,
)

SPEC = ModelSpec(
    architecture="bert_mean_l2h12",
    overrides={"num_heads": 2, "intermediate_size": 16},
    num_classes=6,
    feature_sizes=(16, 8),
    max_frames=30,
)


def test_a_model_is_written_and_read_back(tmp_path: Path) -> None:
    model = SPEC.build(7).eval()
    write_model(tmp_path, SPEC, model.state_dict(), {"steps": 1})
    loaded = read_model(tmp_path, "cpu", "m")
    frames, num_frames = torch.rand(2, 5, 24), torch.tensor([5, 5])
    assert not loaded.training
    assert torch.equal(loaded(frames, num_frames).probabilities, model(frames, num_frames).probabilities)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_model(folder, SPEC, SPEC.build(7).state_dict(), {"steps": 1})
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    wider = replace(SPEC, overrides={**SPEC.overrides, "intermediate_size": 32})
    write_model(tmp_path, wider, SPEC.build().state_dict(), {"steps": 1})
    with pytest.raises(CheckpointMismatchError, match=r"finetuned_model/m: does not fit the model: .*intermediate"):
        read_model(tmp_path, "cpu", "finetuned_model/m")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not readable"), ('{"schema": 2}', "written as schema 2"), ('{"schema": 1}', "feature_sizes")],
)
def test_a_bad_description_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CorruptArtifactError, match=rf"model\.json: .*{message}"):
        ModelSpec.read(tmp_path)


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = SPEC.build(1), SPEC.build(1), SPEC.build(2)
    assert torch.equal(torch.get_rng_state(), before)
    name = "head.gates.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


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
