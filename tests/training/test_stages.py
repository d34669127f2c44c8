from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.support import BERT, MIX, make_recipe, prepare_store
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import MemoryTracking
from yt8m_assets.training.artifacts import load_model
from yt8m_assets.training.stages import finetune, pretrain


def train(stage: Callable[..., StageResult], recipe: Recipe, store: ArtifactStore, key: str, **options) -> StageResult:
    tracking = options.pop("tracking", None) or MemoryTracking()
    return stage(recipe, store, key, tracking=tracking, progress=NullProgress(), run_tags={"who": "test"}, **options)


@pytest.mark.parametrize("model", [MIX, BERT], ids=["mix", "bert"])
def test_a_model_is_pretrained_and_finetuned(tmp_path: Path, shards: Path, model) -> None:
    recipe = make_recipe(shards, model)
    store = prepare_store(tmp_path, recipe)
    tracking = MemoryTracking()
    first = train(pretrain, recipe, store, model.key, tracking=tracking)
    second = train(finetune, recipe, store, model.key, tracking=tracking)
    assert set(first.manifest.files) >= {"weights.safetensors", "model.json", "optimizer.safetensors", "training.json"}
    assert second.manifest.metadata["map"] > 0.5
    loaded = load_model(store, second.manifest)
    out = loaded(torch.zeros(2, 5, 24), torch.tensor([5, 5]))
    assert out.probabilities.shape == (2, 6)
    assert train(finetune, recipe, store, model.key).reused
