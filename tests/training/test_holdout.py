"""Evaluation beside training is bounded, and what interrupts it changes nothing of the result."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.support import FINETUNING, MIX, make_recipe, prepare_store
from yt8m_assets.progress import NullProgress
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.tracking import MemoryTracking
from yt8m_assets.training.averaging import WeightAverage
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.evaluate import HoldoutEvaluation
from yt8m_assets.training.interruption import StopRequest, TrainingPreempted
from yt8m_assets.training.pacing import EvaluationInterrupted, EvaluationLimit
from yt8m_assets.training.stages import finetune, pretrain

CONFIG = replace(FINETUNING, evaluate_every=3, checkpoint_every=4, learning_rate=2e-2, ema_decay=0.8, swa_last=2)


class Runs:
    """Fine-tunes MIX with one configuration after another; pre-trained once."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.shards, self.tracking = shards, MemoryTracking()
        self.store: ArtifactStore = prepare_store(folder, make_recipe(shards, MIX))
        self.run(pretrain, CONFIG)

    def run(self, stage: Any, config: TrainingConfig) -> Manifest:
        recipe = make_recipe(self.shards, replace(MIX, finetuning=config))
        options = {"tracking": self.tracking, "progress": NullProgress(), "run_tags": {}}
        return stage(recipe, self.store, "mix", **options).manifest

    def finetune(self, config: TrainingConfig = CONFIG) -> Manifest:
        self.store.delete("finetuned_model/mix")
        return self.run(finetune, config)

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


def numbered(monkeypatch: pytest.MonkeyPatch, change: Any) -> list[int]:
    """Call `change(number, limit)` before every evaluation (from 0, the one at the start); their numbers."""
    numbers: list[int] = []
    evaluate = HoldoutEvaluation.__call__

    def changed(self: HoldoutEvaluation, model: torch.nn.Module, limit: EvaluationLimit) -> float:
        numbers.append(len(numbers))
        return evaluate(self, model, change(numbers[-1], limit) or limit)

    monkeypatch.setattr(HoldoutEvaluation, "__call__", changed)
    return numbers


@pytest.mark.parametrize("number", [0, 2, 4, 5, 6], ids=["start", "between", "last", "ema", "swa"])
def test_a_stop_during_any_evaluation_leaves_at_once_and_the_rerun_gives_the_same_weights(
    runs: Runs, reference: tuple[Manifest, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        numbers = numbered(patch, lambda n, limit: limit.stop.set() if n == number else None)
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


def test_an_evaluation_is_left_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.test_evaluate import BATCHES, SPEC

    stop, read = StopRequest(), []

    def batches() -> Iterator[Any]:
        for number, batch in enumerate(BATCHES):
            read.append(number)
            yield batch
            if evaluated:
                stop.set()

    evaluated: list[bool] = []
    evaluation = HoldoutEvaluation(batches, torch.device("cpu"))
    assert evaluation.num_segments == sum(map(len, BATCHES))
    evaluated.append(True)
    read.clear()
    model = SPEC.build(3).train()
    with pytest.raises(EvaluationInterrupted):
        evaluation(model, EvaluationLimit(stop))
    assert read == [0, 1]
    assert model.training


def test_an_evaluation_that_takes_too_long_gives_no_map_and_the_next_ones_come_less_often(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Evaluations are due at 0, 2, 4, ... 12; the one at 4 takes too long, so those at multiples of 4 remain."""
    config = replace(CONFIG, evaluate_every=2, evaluation_seconds=50.0, swa_last=3)
    whole = runs.training(runs.finetune(config))
    numbers = numbered(monkeypatch, lambda n, limit: replace(limit, started=limit.started - 60) if n == 2 else None)
    manifest = runs.finetune(config)
    assert "no hold-out MAP at step 4: not done within evaluation_seconds = 50" in caplog.text
    assert set(runs.points("holdout/map_at_100000")) == {0, 2, 8, 12}
    assert runs.points("holdout/evaluations_ended") == {4: 1.0}
    assert len(numbers) == 5 + 2  # with EMA and SWA
    training = runs.training(manifest)
    assert training["evaluations_ended"] == manifest.metadata["evaluations_ended"] == [4]
    by_step = {entry["step"]: entry["map"] for entry in whole["evaluations"]}
    assert [entry["map"] for entry in training["evaluations"]] == [by_step[step] for step in (2, 8, 12)]
    assert training["best"]["map"] == max(by_step[step] for step in (2, 8, 12))
    for name in ("ema", "swa"):  # the averages do not depend on the clock
        assert training["candidates"][name] == whole["candidates"][name]


def test_when_every_evaluation_takes_too_long_the_last_one_still_counts(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch, lambda n, limit: replace(limit, started=limit.started - 60))
    manifest = runs.finetune(replace(CONFIG, evaluate_every=1, evaluation_seconds=50.0, early_stopping=1))
    training = runs.training(manifest)
    assert training["evaluations_ended"] == [0, 2, 4, 8]  # at the start, then every 2, 4, 8, 16 steps
    assert [entry["step"] for entry in training["evaluations"]] == [12]
    assert training["start_map"] is None
    assert manifest.metadata["map"] >= training["best"]["map"] > 0


def test_the_share_stretches_the_interval_and_the_averages_with_it(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 8 examples costs 24 forward passes, a third of that is 8: one evaluation of 40 every 5 steps."""
    monkeypatch.setattr(HoldoutEvaluation, "num_segments", 40)
    manifest = runs.finetune(replace(CONFIG, evaluate_every=1, evaluation_share=1 / 3))
    assert set(runs.points("holdout/map_at_100000")) == {0, 5, 10, 12}
    assert set(manifest.metadata["candidates"]) == {"best", "ema", "swa"}


def test_swa_averages_no_more_points_than_asked_for_where_the_last_interval_is_shorter(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluated at 5, 10 and 12: of these the last two."""
    counts: list[int] = []
    update = WeightAverage.update

    def counting(self: WeightAverage) -> None:
        update(self)
        counts.append(self.count)

    monkeypatch.setattr(WeightAverage, "update", counting)
    runs.finetune(replace(CONFIG, evaluate_every=5, swa_last=2, ema_decay=None))
    assert counts == [1, 2]


def test_early_stopping_is_remembered_by_a_checkpoint_of_that_step(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops early at step 4, and is interrupted while it compares averages, trains no further."""
    config = replace(CONFIG, evaluate_every=2, checkpoint_every=4, early_stopping=1)
    scores = iter([0.1, 0.5, 0.4])  # start, step 2, step 4
    evaluate = HoldoutEvaluation.__call__

    def scripted(self: HoldoutEvaluation, model: torch.nn.Module, limit: EvaluationLimit) -> float:
        evaluate(self, model, limit)
        score = next(scores, None)
        if score is None:
            raise KeyboardInterrupt
        return score

    with monkeypatch.context() as patch:
        patch.setattr(HoldoutEvaluation, "__call__", scripted)
        with pytest.raises(KeyboardInterrupt):
            runs.finetune(config)
    manifest = runs.finetune(config)
    assert (manifest.metadata["resumed_from_step"], manifest.metadata["steps"]) == (4, 4)


def test_the_time_of_evaluations_is_reported_and_is_no_training_time(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch, lambda n, limit: time.sleep(0.2))
    manifest = runs.finetune(replace(CONFIG, evaluate_every=6, ema_decay=None, swa_last=0))
    metadata = manifest.metadata
    assert 0.6 <= metadata["evaluation_seconds"] < metadata["seconds"]
    training_seconds = metadata["seconds"] - metadata["evaluation_seconds"]
    assert metadata["evaluation_share"] == pytest.approx(metadata["evaluation_seconds"] / training_seconds, rel=0.05)
    assert metadata["examples_per_second"] == pytest.approx(12 * 8 / training_seconds, rel=0.05)
    assert runs.points("holdout/evaluation_seconds")[12] >= 0.2
    assert runs.points("holdout/evaluation_share")[12] == pytest.approx(metadata["evaluation_share"], rel=0.2)
