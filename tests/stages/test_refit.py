"""The refit: what predicts the test is trained on the hold-out as well, as long as was best on the split."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.graph import QUIET, make_lists, open_store
from tests.tiny import TRAINING, tiny_model, tiny_recipe
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node, all_nodes, config_slice, nodes, parents
from yt8m_assets.stages.prediction import predict_cells
from yt8m_assets.stages.training import as_learnt, finetune, make_job, pretrain, train_models
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.tracking import NullTracking
from yt8m_assets.training.model_files import read_json, read_tensors

OPTIONS = {"tracking": NullTracking(), "progress": QUIET, "run_tags": {}}
FINE = replace(TRAINING, num_steps=6, window_frames=None, evaluate_every=2, schedule="cosine", continue_schedule=False)
PLAIN = tiny_recipe(models=(tiny_model("one", (0,), finetuning=FINE),))
REFITTED = replace(PLAIN, refit=True)
NODE = Node("refitted_model", "one")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with data and a model, trained on the split."""
    folder = tmp_path_factory.mktemp("refit")
    store = open_store(folder)
    make_lists(PLAIN, store)
    pretrain(PLAIN, store, "one", **OPTIONS)
    finetune(PLAIN, store, "one", **OPTIONS)
    return folder


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> ArtifactStore:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return open_store(tmp_path)


def refit(recipe: Recipe, store: ArtifactStore) -> Manifest:
    ((_, result),) = train_models(recipe, store, "refitted_model", ["one"], **OPTIONS)
    return result.manifest


def learnt(store: ArtifactStore, recipe: Recipe = REFITTED, **changes: object) -> None:
    """Publish the split's model again, as if the hold-out had chosen otherwise."""
    node = Node("finetuned_model", "one")
    folder = store.fetch(store.require(node.key))
    inputs = resolve_inputs(recipe, store, node)
    with store.making_again([node.key]).publish(node.key, **inputs.publish_arguments()) as publication:
        shutil.copytree(folder, publication.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report"))
        path = publication.path / "training.json"
        path.unlink()
        path.write_text(json.dumps({**read_json(folder / "training.json"), **changes}))


def test_it_trains_on_every_rated_video_as_long_as_was_best(store: ArtifactStore) -> None:
    learnt(store, weights="best", best={"step": 4, "map": 0.5})
    job = make_job(REFITTED, store, resolve_inputs(REFITTED, store, NODE), allow_fallback=False)
    assert (job.last_step, job.config.num_steps, job.data.held_out, job.data.holdout_shards) == (4, 6, {}, ())
    table = job.data.segments(job.data.shards)
    held_out = store.fetch(store.require("holdout_ratings")) / "ratings.csv"
    rated = {line.split(":")[0] for line in held_out.read_text().splitlines()}
    assert rated
    assert rated < set(table.video_ids)
    manifest = refit(REFITTED, store)
    found = read_json(store.fetch(manifest) / "training.json")
    assert (found["steps"], found["weights"], found["evaluations"]) == (4, "last", [])
    report = store.fetch(manifest, ("report/history.json",)) / "report" / "history.json"
    history = json.loads(report.read_text())["history"]
    rates = [point["learning_rate"] for point in history]
    assert len(rates) == 4
    assert rates[-1] > 1e-4, "the rates are those of the whole length"


@pytest.mark.parametrize("winner", ["best", "last", "ema", "swa"])
def test_what_the_hold_out_chose_is_what_is_made(store: ArtifactStore, winner: str) -> None:
    learnt(store, weights=winner, best={"step": 2, "map": 0.5}, steps=6)
    config, step = as_learnt(replace(FINE, ema_decay=0.9, swa_last=2), store, store.require("finetuned_model/one"))
    assert step == (2 if winner == "best" else 6)
    assert (config.ema_decay, config.swa_last) == (0.9 if winner == "ema" else None, 2 if winner == "swa" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("winner", [pytest.param("ema", marks=pytest.mark.slow), "swa"])
def test_an_average_is_made_without_a_hold_out(store: ArtifactStore, winner: str) -> None:
    fine = replace(FINE, ema_decay=0.5, swa_last=2)
    recipe = replace(REFITTED, models=(tiny_model("one", (0,), finetuning=fine),))
    finetune(recipe, store, "one", **OPTIONS)
    learnt(store, recipe, weights=winner)
    made = refit(recipe, store)
    assert made.metadata["weights"] == winner
    weights = read_tensors(store.fetch(made) / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_the_test_is_predicted_by_the_refit_and_the_hold_out_is_not(store: ArtifactStore) -> None:
    refitted, split = refit(REFITTED, store), store.require("finetuned_model/one")
    cells = {
        name: predict_cells(REFITTED, store, name, [("one", 0)], tracking=NullTracking(), progress=QUIET)[0].manifest
        for name in ("oof", "test")
    }
    assert cells["test"].metadata["checkpoint"] == refitted.digest != split.digest
    assert cells["oof"].metadata["checkpoint"] == split.digest


def test_without_it_no_node_and_no_slice_changes() -> None:
    assert NODE not in all_nodes(PLAIN)
    assert nodes(REFITTED, "refitted_model") == (NODE,)
    test = Node("test_predictions", "one", 0)
    assert NODE in parents(REFITTED, test)
    assert NODE not in parents(PLAIN, test)
    differing = {node.asset for node in all_nodes(PLAIN) if config_slice(PLAIN, node) != config_slice(REFITTED, node)}
    assert differing == {"test_predictions"}
    assert not any(load_recipe(name).refit for name in ("demo", "challenge"))
