"""Pre-training is scored on held-out videos, which changes nothing of the training itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import BERT, FEATURE_SIZES, MIX, NUM_CLASSES, PRETRAINING, make_recipe, prepare_store
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import ShardInfo, ShardManifest
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.errors import NonFiniteError, OutOfMemoryError
from yt8m_assets.evaluation import global_average_precision, hit_at_one, precision_at_equal_recall_rate
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.stages.data import read_shards
from yt8m_assets.stages.training import finetune, load_model, pretrain, shards_to_score
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.evaluate import VideoEvaluation
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.model_files import OPTIMIZER, WEIGHTS, read_tensors

SCORES = ("gap_at_20", "hit_at_1", "perr", "map_at_20")


class Runs:
    """Pre-trains with one configuration after another."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.shards, self.tracking = shards, MemoryTracking()
        self.recipe = make_recipe(shards, MIX, holds_out_labels=True)
        self.store: ArtifactStore = prepare_store(folder, self.recipe)

    def run(self, stage: Any, model: ModelRecipe) -> Manifest:
        recipe = make_recipe(self.shards, model, holds_out_labels=True)
        options = {"tracking": self.tracking, "progress": NullProgress(), "run_tags": {}}
        return stage(recipe, self.store, model.key, **options).manifest

    def pretrain(self, model: ModelRecipe = MIX, **changes: Any) -> Manifest:
        self.store.delete(f"pretrained_model/{model.key}")
        return self.run(pretrain, replace(model, pretraining=replace(model.pretraining, **changes)))

    def points(self, name: str) -> dict[int, float]:
        return dict(self.tracking.runs[-1].series(name))

    def tensors(self, manifest: Manifest, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
        return read_tensors(self.store.fetch(manifest) / name)

    def training(self, manifest: Manifest) -> dict[str, Any]:
        return json.loads((self.store.fetch(manifest) / "training.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("pre-training"), shards)


def scripted(monkeypatch: pytest.MonkeyPatch, *gaps: float) -> None:
    scores = iter(gaps)
    monkeypatch.setattr(VideoEvaluation, "__call__", lambda self, model, stop: {"gap_at_20": next(scores)})


@pytest.mark.parametrize("model", [MIX, BERT], ids=["whole videos", "windows"])
def test_the_scores_are_those_of_the_published_weights_on_the_held_out_videos(runs: Runs, model: ModelRecipe) -> None:
    manifest = runs.pretrain(model, evaluate_every=4)
    trained = load_model(runs.store, manifest)
    uris = read_shards(runs.recipe, runs.store, "pretraining_shards").uris(held_out=True)
    assert uris
    probabilities, labels = [], []
    for video in [video for uri in uris for video in read_shard(uri, feature_sizes=FEATURE_SIZES)]:
        frames = torch.from_numpy(video.frames.copy())[None]
        if model is BERT:
            first = (frames.shape[1] - 5) // 2
            frames = frames[:, first : first + 5]
        count = frames.shape[1]
        with torch.no_grad():
            output = trained(model_inputs(frames, torch.ones(1, count, dtype=torch.bool)), torch.tensor([count]))
        probabilities.append(output.probabilities[0].numpy())
        labels.append(np.isin(np.arange(NUM_CLASSES), video.labels))
    found = [manifest.metadata[name] for name in SCORES[:3]]
    metrics = (global_average_precision, hit_at_one, precision_at_equal_recall_rate)
    expected = [metric(np.array(probabilities), np.array(labels)) for metric in metrics]
    assert found == pytest.approx(expected, abs=1e-6)
    assert manifest.metadata["gap_at_20"] > 0.5


def test_the_learning_curve_is_live_and_in_artifact_and_metadata(runs: Runs) -> None:
    manifest = runs.pretrain(evaluate_every=4)
    for name in SCORES:
        points = runs.points(f"holdout/{name}")
        assert set(points) == {4, 8, 12}
        assert points[12] == manifest.metadata[name]
    assert runs.points("holdout/best_gap_at_20")[12] == max(runs.points("holdout/gap_at_20").values())
    assert manifest.metadata["evaluation_seconds"] > 0
    assert (manifest.metadata["weights"], set(manifest.metadata["candidates"])) == ("last", {"last"})
    training = runs.training(manifest)
    assert {entry["step"]: entry["perr"] for entry in training["evaluations"]} == runs.points("holdout/perr")
    history = json.loads((runs.store.fetch(manifest) / "report/history.json").read_text())
    assert [entry["step"] for entry in history["evaluations"]] == [4, 8, 12]


def test_evaluating_changes_no_bit_of_the_training(runs: Runs) -> None:
    plain = runs.pretrain(evaluation_videos=0, ema_decay=0.8)
    losses, weights = runs.points("train/loss"), runs.tensors(plain)
    assert "gap_at_20" not in plain.metadata
    assert plain.metadata["candidates"] == {"ema": None}
    slots = runs.tensors(plain, OPTIMIZER)
    often = runs.pretrain(evaluate_every=1, ema_decay=0.8)
    assert runs.points("train/loss") == losses
    assert all(torch.equal(value, slots[name]) for name, value in runs.tensors(often, OPTIMIZER).items())
    if often.metadata["weights"] == "ema":
        assert all(torch.equal(value, weights[name]) for name, value in runs.tensors(often).items())


@pytest.mark.parametrize(("ema", "winner"), [(0.3, "last"), (0.5, "ema")])
def test_the_average_is_published_only_where_it_scores_better(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, ema: float, winner: str
) -> None:
    plain = runs.tensors(runs.pretrain(evaluation_videos=0))
    scripted(monkeypatch, 0.4, ema)
    manifest = runs.pretrain(ema_decay=0.8)
    assert manifest.metadata["weights"] == winner
    assert manifest.metadata["candidates"] == {"last": 0.4, "ema": ema}
    assert manifest.metadata["gap_at_20"] == max(0.4, ema)
    same = all(torch.equal(value, plain[name]) for name, value in runs.tensors(manifest).items())
    assert same == (winner == "last")


def test_the_best_point_is_published_with_its_own_optimiser_state(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fine-tuning goes on from is then the run as it stood at that step."""
    until_8 = runs.pretrain(num_steps=8, evaluation_videos=0)
    weights, slots = runs.tensors(until_8), runs.tensors(until_8, OPTIMIZER)
    scripted(monkeypatch, 0.4, 0.6, 0.5)
    manifest = runs.pretrain(evaluate_every=4, keep_best=True)
    assert (manifest.metadata["weights"], manifest.metadata["best_step"]) == ("best", 8)
    assert all(torch.equal(value, weights[name]) for name, value in runs.tensors(manifest).items())
    assert all(torch.equal(value, slots[name]) for name, value in runs.tensors(manifest, OPTIMIZER).items())
    training = runs.training(manifest)
    assert (training["steps"], training["examples"], training["optimizer_steps"]) == (12, 64, 8)
    monkeypatch.undo()
    changed = replace(MIX, pretraining=replace(PRETRAINING, evaluate_every=4, keep_best=True))
    assert runs.run(finetune, changed).metadata["map"] > 0


def test_early_stopping_ends_pre_training(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, 0.4, 0.6, 0.5, 0.55)
    manifest = runs.pretrain(evaluate_every=2, early_stopping=2)
    assert (manifest.metadata["steps"], manifest.metadata["best_step"]) == (8, 4)
    assert (manifest.metadata["weights"], manifest.metadata["gap_at_20"]) == ("last", 0.55)


def test_a_stop_during_an_evaluation_leaves_at_once_and_the_rerun_publishes_the_same(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"evaluate_every": 4, "ema_decay": 0.8, "keep_best": True}
    digest = runs.pretrain(**options).digest
    evaluate, numbers = VideoEvaluation.__call__, iter(range(100))

    def stopping(self: VideoEvaluation, model: torch.nn.Module, stop: StopRequest) -> dict[str, float]:
        if next(numbers) == 1:
            stop.set()
        return evaluate(self, model, stop)

    monkeypatch.setattr(VideoEvaluation, "__call__", stopping)
    with pytest.raises(TrainingPreempted, match="step 8"):
        runs.pretrain(**options)
    manifest = runs.pretrain(**options)
    assert (manifest.metadata["resumed_from_step"], manifest.digest) == (8, digest)


def test_few_shards_are_read_and_videos_are_spread_over_them(runs: Runs) -> None:
    infos = [
        ShardInfo(name=f"{n}", uri=f"{n}", size=1, checksum="", num_records=4, num_videos=4, num_frames=9)
        for n in range(9)
    ]
    held = tuple(replace(info, num_held_out=4 * (number % 2)) for number, info in enumerate(infos))
    shards = ShardManifest(shards=held)
    assert shards_to_score(shards, 5).uris() == ["1", "3"]
    assert shards_to_score(shards, 100).uris() == ["1", "3", "5", "7"]
    assert shards_to_score(shards, 0).uris() == []
    uris = read_shards(runs.recipe, runs.store, "pretraining_shards").uris(held_out=True)
    videos = load_videos(uris, Reading(feature_sizes=FEATURE_SIZES))
    dataset = PretrainingDataset(videos, num_classes=NUM_CLASSES, window_frames=5, batch_size=4)
    evaluation = VideoEvaluation(dataset, 4, torch.device("cpu"))
    held = len(evaluation.dataset.videos)
    assert evaluation.numbers.tolist() == [number * held // 4 for number in range(4)]


def test_what_ends_it_is_said_by_name_and_the_state_is_untouched(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = read_shards(runs.recipe, runs.store, "pretraining_shards").uris(held_out=True)
    videos = load_videos(uris, Reading(feature_sizes=FEATURE_SIZES))
    dataset = PretrainingDataset(videos, num_classes=NUM_CLASSES, window_frames=None, batch_size=4)
    evaluation = VideoEvaluation(dataset, 8, torch.device("cpu"))
    model = load_model(runs.store, runs.pretrain()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert evaluation(model, StopRequest()) == evaluation(model, StopRequest())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite, among the videos v0"):
        evaluation(model, StopRequest())
    monkeypatch.setattr(model, "forward", exhausted)
    with pytest.raises(OutOfMemoryError, match=r"lower batch_size \(here 4 a forward pass\) or set precision="):
        evaluation(model, StopRequest())


def exhausted(*_: Any) -> None:
    """A model that asks for more memory than there is."""
    raise RuntimeError("CUDA error: out of memory")
