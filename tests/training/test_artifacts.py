import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models import export_tf_variables
from tests.training.support import BERT, MIX, make_recipe, prepare_store
from yt8m_assets.errors import CheckpointMismatchError, ConfigError, CorruptArtifactError
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.lineage import Node, current_manifest
from yt8m_assets.stages.training import finetune, publish_imported
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.tracking import MemoryTracking
from yt8m_assets.training.artifacts import ModelSpec, load_model, write_model

SPEC = ModelSpec(
    architecture="bert_mean_l2h12",
    overrides={"num_heads": 2, "intermediate_size": 16},
    num_classes=6,
    feature_sizes=(16, 8),
    max_frames=30,
)


def publish(store: ArtifactStore, spec: ModelSpec, weights: dict[str, torch.Tensor]) -> None:
    with store.publish("finetuned_model/m", fingerprint="f") as publication:
        write_model(publication.path, spec, weights, {"steps": 1})


def test_a_model_is_written_and_read_back(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    model = SPEC.build(7).eval()
    publish(store, SPEC, dict(model.state_dict()))
    loaded = load_model(store, store.require("finetuned_model/m"), "cpu")
    frames, num_frames = torch.rand(2, 5, 24), torch.tensor([5, 5])
    assert not loaded.training
    assert torch.equal(loaded(frames, num_frames).probabilities, model(frames, num_frames).probabilities)


def test_equal_models_give_equal_digests(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        store = ArtifactStore(str(tmp_path / str(number)), tmp_path / "cache")
        publish(store, SPEC, dict(SPEC.build(7).state_dict()))
        digests.add(store.require("finetuned_model/m").digest)
    assert len(digests) == 1


def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache")
    wider = replace(SPEC, overrides={**SPEC.overrides, "intermediate_size": 32})
    publish(store, wider, dict(SPEC.build().state_dict()))
    with pytest.raises(CheckpointMismatchError, match=r"finetuned_model/m: does not fit the model: .*intermediate"):
        load_model(store, store.require("finetuned_model/m"))


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


def test_imported_variables_become_a_current_artifact_that_finetuning_continues(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, BERT)
    store = prepare_store(tmp_path, recipe)
    source = SPEC.build(5)
    variables = export_tf_variables(source)  # type: ignore[arg-type]
    variables["global_step"] = np.array(200_000)
    result = publish_imported(recipe, store, "pretrained_model", "bert", variables, num_steps=200_000)
    assert result.manifest.metadata["imported"]
    assert current_manifest(recipe, store, Node("pretrained_model", "bert")) is not None
    training = json.loads((store.fetch(result.manifest) / "training.json").read_text())
    assert training["examples"] == 200_000 * 8
    loaded = load_model(store, result.manifest)
    assert all(torch.equal(v, source.state_dict()[name]) for name, v in loaded.state_dict().items())
    tracking = MemoryTracking()
    finetune(recipe, store, "bert", tracking=tracking, progress=NullProgress(), run_tags={})
    rates = dict(tracking.runs[0].series("train/learning_rate"))
    assert rates[1] == BERT.finetuning.learning_rate  # 1.6 M examples: still on the first stair


def test_an_imported_finetuned_model_stands_in_for_the_pretrained_one_that_is_missing(
    tmp_path: Path, shards: Path
) -> None:
    recipe = make_recipe(shards, BERT)
    store = prepare_store(tmp_path, recipe)
    variables = export_tf_variables(SPEC.build(5))  # type: ignore[arg-type]
    result = publish_imported(recipe, store, "finetuned_model", "bert", variables)
    stand_in = current_manifest(recipe, store, Node("pretrained_model", "bert"))
    assert stand_in is not None
    assert stand_in.files["weights.safetensors"] == result.manifest.files["weights.safetensors"]
    assert current_manifest(recipe, store, Node("finetuned_model", "bert")) == result.manifest
    other = export_tf_variables(SPEC.build(6))  # type: ignore[arg-type]
    publish_imported(recipe, store, "pretrained_model", "bert", other)
    published = current_manifest(recipe, store, Node("pretrained_model", "bert"))
    publish_imported(recipe, store, "finetuned_model", "bert", variables)
    assert current_manifest(recipe, store, Node("pretrained_model", "bert")) == published != stand_in


def test_a_bad_import_publishes_nothing(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, MIX)
    store = prepare_store(tmp_path, recipe)
    with pytest.raises(ValueError, match="missing: tower/"):
        publish_imported(recipe, store, "pretrained_model", "mix", {})
    with pytest.raises(ConfigError, match="asset = 'submission'"):
        publish_imported(recipe, store, "submission", "mix", {})
    assert store.manifest("pretrained_model/mix") is None
