"""Finished weights of TensorFlow, published as a model of the recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import export_tf_variables
from tests.memory_tracking import MemoryTracking
from tests.training.support import BERT, MIX, make_recipe, prepare_store
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.imported import publish_imported
from yt8m_assets.stages.lineage import current_manifest
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import finetune, load_model, model_spec


def test_imported_variables_become_a_current_artifact_that_finetuning_continues(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, BERT)
    store = prepare_store(tmp_path, recipe)
    source = model_spec(recipe, "bert").build(5)
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
    spec = model_spec(recipe, "bert")
    variables = export_tf_variables(spec.build(5))  # type: ignore[arg-type]
    result = publish_imported(recipe, store, "finetuned_model", "bert", variables)
    stand_in = current_manifest(recipe, store, Node("pretrained_model", "bert"))
    assert stand_in is not None
    assert stand_in.files["weights.safetensors"] == result.manifest.files["weights.safetensors"]
    assert current_manifest(recipe, store, Node("finetuned_model", "bert")) == result.manifest
    other = export_tf_variables(spec.build(6))  # type: ignore[arg-type]
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
