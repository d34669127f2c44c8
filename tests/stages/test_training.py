import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.faults.test_training import StopAt
from tests.memory_tracking import MemoryTracking
from tests.training.support import BERT, MIX, SCORER, make_recipe, prepare_store
from yt8m_assets.device.hardware import find_hardware
from yt8m_assets.errors import MissingArtifactError
from yt8m_assets.progress import NullProgress, PlainProgress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.training import finetune, load_model, pretrain
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.training.checkpoint import CheckpointStore
from yt8m_assets.training.interruption import TrainingPreempted


def train(stage: Callable[..., StageResult], recipe: Recipe, store: ArtifactStore, key: str, **options) -> StageResult:
    tracking = options.pop("tracking", None) or MemoryTracking()
    return stage(recipe, store, key, tracking=tracking, progress=NullProgress(), run_tags={"who": "test"}, **options)


@pytest.mark.parametrize("model", [MIX, BERT, SCORER], ids=["mix", "bert", "scorer"])
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


def test_a_run_of_no_steps_publishes_what_it_started_from(tmp_path: Path, shards: Path) -> None:
    model = replace(BERT, pretraining=replace(BERT.pretraining, num_steps=0))
    model = replace(model, finetuning=replace(BERT.finetuning, num_steps=0))
    recipe = make_recipe(shards, model)
    store = prepare_store(tmp_path, recipe)
    first = train(pretrain, recipe, store, "bert").manifest
    second = train(finetune, recipe, store, "bert").manifest
    assert second.metadata["map"] == second.metadata["start_map"]
    assert first.files["weights.safetensors"] == second.files["weights.safetensors"]


def test_rerun_is_reused_cleans_up_and_a_changed_recipe_is_redone(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(shards, BERT)
    store = prepare_store(tmp_path, recipe)
    tracking = MemoryTracking()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "discard", lambda self: None)  # ended between publishing and here
        first = train(pretrain, recipe, store, "bert", tracking=tracking)
    assert store.list_keys("checkpoints/pretrained_model/bert")
    again = train(pretrain, recipe, store, "bert", tracking=tracking)
    assert again.reused
    assert again.manifest == first.manifest
    assert len(tracking.runs) == 1
    assert store.list_keys("checkpoints/pretrained_model/bert") == []
    changed = make_recipe(shards, replace(BERT, pretraining=replace(BERT.pretraining, label_smoothing=0.1)))
    redone = train(pretrain, changed, store, "bert", tracking=tracking)
    assert not redone.reused
    assert redone.manifest.digest != first.manifest.digest


def test_a_published_model_that_is_asked_for_again_leaves_another_recipes_run_alone(
    tmp_path: Path, shards: Path
) -> None:
    """Two recipes share a store: hours of the other's training may lie in its checkpoints."""
    recipe = make_recipe(shards, BERT)
    other = make_recipe(shards, replace(BERT, pretraining=replace(BERT.pretraining, label_smoothing=0.1)))
    store = prepare_store(tmp_path, recipe)
    train(pretrain, recipe, store, "bert")
    with pytest.raises(TrainingPreempted):
        train(pretrain, other, store, "bert", tracking=StopAt(9))
    assert train(pretrain, recipe, store, "bert").reused
    assert train(pretrain, other, store, "bert").manifest.metadata["resumed_from_step"] == 9
    assert store.list_keys("checkpoints/pretrained_model/bert") == []


def test_a_run_says_what_it_was_made_from(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, MIX)
    store = prepare_store(tmp_path, recipe)
    tracking = MemoryTracking()
    for stage in (pretrain, finetune):
        manifest = train(stage, recipe, store, "mix", tracking=tracking).manifest
        run = tracking.runs[-1]
        assert run.status == "FINISHED"
        assert manifest.metadata["mlflow_run_id"] == run.run_id
        assert run.tags["who"] == "test"
        assert run.tags["asset"] == manifest.key.split("/")[0]
        assert run.tags["fingerprint"] == manifest.fingerprint
        assert {name.removeprefix("parent.") for name in run.tags if name.startswith("parent.")} == set(
            manifest.parents
        )
        assert run.params["training.num_steps"] == "12"
        assert {"report/curves.png", "report/history.json"} <= set(manifest.files)
        assert ("report", "curves.png") in run.artifacts
    contexts = {entry["context"] for entry in tracking.runs[-1].datasets}
    assert contexts == {"training", "holdout"}


def test_missing_parents_are_named(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, MIX)
    store = prepare_store(tmp_path, recipe)
    with pytest.raises(MissingArtifactError, match="needs pretrained_model/mix"):
        train(finetune, recipe, store, "mix")


def test_the_first_line_comes_at_once_and_says_what_runs_and_where_it_is_tracked(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, MIX)
    store, stream = prepare_store(tmp_path, recipe), io.StringIO()
    tracking = StopAt(3)
    for _ in range(2):
        with contextlib.suppress(TrainingPreempted):
            pretrain(recipe, store, "mix", tracking=tracking, progress=PlainProgress(stream), run_tags={})
    first, again, last = stream.getvalue().splitlines()
    run = f"recipe tiny; MLflow run {tracking.runs[0].run_id}; on {find_hardware().summary}"
    assert first == f"pretraining mix: 12 steps of 8 examples; {run}"
    assert again == f"pretraining mix: 12 steps of 8 examples, goes on after step 3; {run}"
    assert last.startswith("pretraining mix: 12 steps, 9 of them in")


def test_people_see_step_loss_rate_time_left_and_map(tmp_path: Path, shards: Path) -> None:
    recipe = make_recipe(shards, MIX)
    store, stream = prepare_store(tmp_path, recipe), io.StringIO()
    progress = PlainProgress(stream, seconds=0.0)  # a line at every step
    for stage in (pretrain, finetune):
        stage(recipe, store, "mix", tracking=MemoryTracking(), progress=progress, run_tags={})
    lines = stream.getvalue().splitlines()
    [first] = [line for line in lines if line.startswith("pretraining mix: 8/12 steps")]
    assert re.search(r"\([\d.]+/s, \d+ s left\)  loss \d\.\d+  examples/s \d+$", first)
    [last] = [line for line in lines if line.startswith("finetuning mix: 12/12 steps")]
    assert re.search(r"loss \d\.\d+  examples/s \d+  map 0\.\d+  best 0\.\d+$", last)
