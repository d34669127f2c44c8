"""When the hold-out is scored beside training; what interrupts it changes nothing of the result."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.support import FINETUNING, MIX, make_recipe, prepare_store
from yt8m_assets.assets.models import FALLBACK_TAG
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.progress import NullProgress
from yt8m_assets.stages.training import finetune, pretrain
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.averages import WeightAverage
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.evaluate import HoldoutEvaluation
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.model_files import WEIGHTS, read_tensors
from yt8m_assets.training.validate import evaluations_by

CONFIG = replace(FINETUNING, evaluate_every=3, checkpoint_every=4, learning_rate=2e-2, ema_decay=0.8, swa_last=2)


class Runs:
    """Fine-tunes MIX with one configuration after another; pre-trained once."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.shards, self.tracking = shards, MemoryTracking()
        self.store: ArtifactStore = prepare_store(folder, make_recipe(shards, MIX))
        self.run(pretrain, CONFIG)

    def run(self, stage: Any, config: TrainingConfig, **options: Any) -> Manifest:
        recipe = make_recipe(self.shards, replace(MIX, finetuning=config))
        options |= {"tracking": self.tracking, "progress": NullProgress(), "run_tags": {}}
        return stage(recipe, self.store, "mix", **options).manifest

    def finetune(self, config: TrainingConfig = CONFIG, **options: Any) -> Manifest:
        self.store.delete("finetuned_model/mix")
        return self.run(finetune, config, **options)

    def training(self, manifest: Manifest) -> dict[str, Any]:
        return json.loads((self.store.fetch(manifest) / "training.json").read_text())

    def points(self, name: str) -> dict[int, float]:
        return dict(self.tracking.runs[-1].series(name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("hold-out"), shards)


@pytest.fixture(scope="module")
def reference(runs: Runs) -> tuple[Manifest, dict[str, Any]]:
    manifest = runs.finetune()
    return manifest, runs.training(manifest)


def numbered(monkeypatch: pytest.MonkeyPatch, before: Any) -> list[int]:
    """Call `before(number, stop)` ahead of every evaluation (from 0, the one at the start); their numbers."""
    numbers: list[int] = []
    evaluate = HoldoutEvaluation.__call__

    def changed(self: HoldoutEvaluation, model: torch.nn.Module, stop: StopRequest) -> dict[str, float]:
        numbers.append(len(numbers))
        before(numbers[-1], stop)
        return evaluate(self, model, stop)

    monkeypatch.setattr(HoldoutEvaluation, "__call__", changed)
    return numbers


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(0, id="start", marks=pytest.mark.slow),
        pytest.param(2, id="between"),
        pytest.param(4, id="last", marks=pytest.mark.slow),
        pytest.param(5, id="ema"),
        pytest.param(6, id="swa", marks=pytest.mark.slow),
    ],
)
def test_a_stop_during_any_evaluation_leaves_at_once_and_the_rerun_gives_the_same_weights(
    runs: Runs, reference: tuple[Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        numbers = numbered(patch, lambda n, stop: stop.set() if n == number else None)
        with pytest.raises(TrainingPreempted) as stopped:
            runs.finetune()
        assert numbers[-1] == number  # no other evaluation after it
    step = min(3 * number, 12)
    assert stopped.value.step == step
    assert runs.store.list_keys("checkpoints/finetuned_model/mix")[-1].endswith(f"step-{step:08d}")
    manifest = runs.finetune()
    assert manifest.metadata["resumed_from_step"] == step
    assert manifest.digest == reference[0].digest
    assert runs.training(manifest) == reference[1]


@pytest.mark.parametrize(
    ("steps", "every", "points"),
    [
        (75, 37, [38, 75]),
        (75, 30, [38, 75]),
        (12, 5, [6, 12]),
        (12, 4, [4, 8, 12]),
        (10, 3, [4, 7, 10]),
        (5, 9, [5]),
        (5, None, [5]),
        (0, None, []),
    ],
)
def test_evaluations_lie_evenly_and_never_closer_than_asked_for(
    steps: int, every: int | None, points: list[int]
) -> None:
    """At the multiples of 37 there would be one at step 74 and one at 75, and an average of two would be of one."""
    config = replace(CONFIG, num_steps=steps, evaluate_every=every)
    due = [step for step in range(1, steps + 1) if evaluations_by(step, config) > evaluations_by(step - 1, config)]
    assert due == points


def test_swa_averages_as_many_points_as_asked_for_and_they_are_spread(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 steps with an evaluation every 5: at 6 and 12, none of them at 10."""
    counts: list[int] = []
    update = WeightAverage.update

    def counting(self: WeightAverage) -> None:
        update(self)
        counts.append(self.count)

    monkeypatch.setattr(WeightAverage, "update", counting)
    runs.finetune(replace(CONFIG, evaluate_every=5, swa_last=2, ema_decay=None))
    assert counts == [1, 2]
    assert set(runs.points("holdout/map_at_100000")) == {0, 6, 12}


def test_early_stopping_is_remembered_by_a_checkpoint_of_that_step(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops early at step 4, and is interrupted while it compares averages, trains no further."""
    config = replace(CONFIG, evaluate_every=2, checkpoint_every=4, early_stopping=1)
    scores = iter([0.1, 0.5, 0.4])  # start, step 2, step 4
    evaluate = HoldoutEvaluation.__call__

    def scripted(self: HoldoutEvaluation, model: torch.nn.Module, stop: StopRequest) -> dict[str, float]:
        evaluate(self, model, stop)
        score = next(scores, None)
        if score is None:
            raise KeyboardInterrupt
        return {"map": score}

    with monkeypatch.context() as patch:
        patch.setattr(HoldoutEvaluation, "__call__", scripted)
        with pytest.raises(KeyboardInterrupt):
            runs.finetune(config)
    manifest = runs.finetune(config)
    assert (manifest.metadata["resumed_from_step"], manifest.metadata["steps"]) == (4, 4)


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "removed"])
def test_where_the_best_weights_are_lost_the_best_from_there_on_are_published(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Best at step 3, stopped at step 6; the rerun scores step 6 once more, and what comes after it."""
    config = replace(CONFIG, ema_decay=None, swa_last=0)
    scores, seen = iter([0.1, 0.9, 0.2, 0.25, 0.5, 0.4]), []

    def scripted(self: HoldoutEvaluation, model: torch.nn.Module, stop: StopRequest) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        if len(seen) == 3:
            stop.set()
        return {"map": next(scores)}

    monkeypatch.setattr(HoldoutEvaluation, "__call__", scripted)
    with pytest.raises(TrainingPreempted, match="after step 6"):
        runs.finetune(config)
    key = "checkpoints/finetuned_model/mix/best"
    if damaged:
        file = runs.store.fetch(runs.store.require(key)) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        runs.store = ArtifactStore(runs.store.root_uri)  # one that has not verified it yet
        with pytest.raises(
            CorruptArtifactError, match=rf"best weights .*/best: .*--allow-fallback; .* {FALLBACK_TAG}: true"
        ):
            runs.finetune(config)
    else:
        runs.store.delete(key)
    manifest = runs.finetune(config, allow_fallback=damaged)
    assert (manifest.metadata["resumed_from_step"], manifest.metadata["best_step"]) == (6, 9)
    assert (manifest.metadata["weights"], manifest.metadata["map"]) == ("best", 0.5)
    published = read_tensors(runs.store.fetch(manifest) / WEIGHTS)
    assert all(torch.equal(seen[4][name], value) for name, value in published.items())
    assert runs.store.list_keys("checkpoints/finetuned_model/mix") == []


def test_the_time_of_evaluations_is_reported_and_is_no_training_time(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch, lambda n, stop: time.sleep(0.2))
    manifest = runs.finetune(replace(CONFIG, evaluate_every=6, ema_decay=None, swa_last=0))
    metadata = manifest.metadata
    assert 0.6 <= metadata["evaluation_seconds"] < metadata["seconds"]
    training_seconds = metadata["seconds"] - metadata["evaluation_seconds"]
    assert metadata["evaluation_share"] == pytest.approx(metadata["evaluation_seconds"] / training_seconds, rel=0.05)
    assert metadata["examples_per_second"] == pytest.approx(12 * 8 / training_seconds, rel=0.05)
    assert runs.points("holdout/evaluation_seconds")[12] >= 0.2
    assert runs.points("holdout/evaluation_share")[12] == pytest.approx(metadata["evaluation_share"], rel=0.2)
