"""The loop as a whole, through the stages: evaluation beside training, averages, early stopping, options."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.memory_tracking import MemoryTracking
from tests.training.batches import BATCHES
from tests.training.support import BERT, FINETUNING, MIX, make_recipe, prepare_store
from yt8m_assets.device.transfer import Arriving
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import NullProgress
from yt8m_assets.recipes.schema import ModelRecipe
from yt8m_assets.stages.training import finetune, load_model, pretrain
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.training.evaluate import HoldoutEvaluation
from yt8m_assets.training.model_files import WEIGHTS, read_tensors
from yt8m_assets.training.step import Stepper
from yt8m_assets.training.trainer import LossMeter, Stopwatch


class Runs:
    """Pre-trains MIX once, and fine-tunes it with other configurations."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.shards = shards
        self.store: ArtifactStore = prepare_store(folder, make_recipe(shards, MIX))
        self.tracking = MemoryTracking()
        self.run(pretrain, MIX)

    def run(self, stage: Any, model: ModelRecipe) -> Manifest:
        recipe = make_recipe(self.shards, model)
        options = {"tracking": self.tracking, "progress": NullProgress(), "run_tags": {}}
        return stage(recipe, self.store, model.key, **options).manifest

    def finetune(self, **changes: Any) -> Manifest:
        self.store.delete("finetuned_model/mix")
        return self.run(finetune, replace(MIX, finetuning=replace(FINETUNING, **changes)))

    def losses(self) -> list[float]:
        return [value for _, value in self.tracking.runs[-1].series("train/loss")]

    def weights(self, manifest: Manifest) -> dict[str, torch.Tensor]:
        return read_tensors(self.store.fetch(manifest) / WEIGHTS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("loop"), shards)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_evaluating_often_or_rarely_trains_the_same_weights(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HoldoutEvaluation, "__call__", counted := Counted(HoldoutEvaluation.__call__))
    rarely = runs.finetune(evaluate_every=12, learning_rate=1e-3)
    losses = runs.losses()
    assert len(counted.scores) == 2  # at the start and at the end
    often = runs.finetune(evaluate_every=1, learning_rate=1e-3)
    assert len(counted.scores) == 2 + 1 + 12
    assert runs.losses() == losses
    last = [entry for entry in runs.tracking.runs[-1].series("holdout/map_at_100000") if entry[0] == 12]
    assert last[0][1] == counted.scores[1]
    assert often.metadata["map"] >= rarely.metadata["map"]


class Counted:
    """A method that keeps what it returned."""

    def __init__(self, method: Any) -> None:
        self.method, self.scores = method, []  # type: ignore[var-annotated]

    def __get__(self, instance: Any, owner: Any) -> Any:
        return lambda *arguments: self.keep(self.method(instance, *arguments))

    def keep(self, scores: dict[str, float]) -> dict[str, float]:
        self.scores.append(scores["map"])
        return scores


def test_the_published_weights_have_the_best_map(runs: Runs) -> None:
    manifest = runs.finetune(evaluate_every=2, learning_rate=5e-2)
    series = dict(runs.tracking.runs[-1].series("holdout/map_at_100000"))
    best = manifest.metadata["best_step"]
    assert manifest.metadata["map"] == series[best] == max(value for step, value in series.items() if step)
    assert manifest.metadata["start_map"] == series[0]
    assert dict(runs.tracking.runs[-1].series("holdout/best_map_at_100000"))[12] == series[best]
    (registered,) = runs.tracking.runs[-1].registered
    assert (registered["name"], registered["metric"]) == ("yt8m-tiny-mix", series[best])


def test_best_ema_and_swa_compete_and_the_winner_is_published(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HoldoutEvaluation, "__call__", counted := Counted(HoldoutEvaluation.__call__))
    manifest = runs.finetune(evaluate_every=3, swa_last=3, ema_decay=0.8)
    candidates = manifest.metadata["candidates"]
    assert set(candidates) == {"best", "ema", "swa"}
    assert list(candidates.values())[1:] == counted.scores[-2:]
    assert candidates[manifest.metadata["weights"]] == manifest.metadata["map"] == max(candidates.values())


@pytest.mark.parametrize("winner", ["ema", "swa"])
def test_a_better_average_is_published(runs: Runs, monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    scores = iter([0.1] * 5 + [0.9 if winner == "ema" else 0.2, 0.8])  # start, four evaluations, EMA, SWA
    monkeypatch.setattr(HoldoutEvaluation, "__call__", lambda self, model, stop: {"map": next(scores)})
    manifest = runs.finetune(evaluate_every=3, swa_last=3, ema_decay=0.8)
    assert (manifest.metadata["weights"], manifest.metadata["map"]) == (winner, 0.9 if winner == "ema" else 0.8)
    assert runs.tracking.runs[-1].tags["weights"] == winner


def test_swa_averages_the_last_evaluated_points(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One point averaged is that point; two are their mean."""
    seen: list[dict[str, torch.Tensor]] = []

    def remember(self: HoldoutEvaluation, model: torch.nn.Module, stop: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"map": len(seen) / 100}  # the later the better, so SWA wins

    monkeypatch.setattr(HoldoutEvaluation, "__call__", remember)
    manifest = runs.finetune(evaluate_every=4, swa_last=2)
    assert manifest.metadata["weights"] == "swa"
    at_8, at_12, averaged = seen[2], seen[3], runs.weights(manifest)
    for name, value in averaged.items():
        if "running" not in name:
            torch.testing.assert_close(value, (at_8[name] + at_12[name]) / 2)


def test_early_stopping_ends_after_evaluations_without_a_better_map(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.5, 0.6, 0.4, 0.6, 0.7])
    monkeypatch.setattr(HoldoutEvaluation, "__call__", lambda self, model, stop: {"map": next(scores)})
    manifest = runs.finetune(evaluate_every=2, early_stopping=2)
    assert (manifest.metadata["steps"], manifest.metadata["best_step"], manifest.metadata["map"]) == (8, 4, 0.6)


def test_accumulation_gives_the_same_gradients(tmp_path: Path, shards: Path) -> None:
    curves = []
    for pieces in (1, 4):
        model = replace(BERT, overrides={**BERT.overrides, "dropout": 0.0})
        model = replace(model, pretraining=replace(model.pretraining, accumulation=pieces))
        recipe = make_recipe(shards, model)
        tracking = MemoryTracking()
        store = prepare_store(tmp_path / str(pieces), recipe)
        pretrain(recipe, store, "bert", tracking=tracking, progress=NullProgress(), run_tags={})
        curves.append([value for _, value in tracking.runs[0].series("train/loss")])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_bfloat16_and_activation_checkpointing_train(runs: Runs) -> None:
    runs.finetune(evaluate_every=12)
    exact = runs.losses()
    runs.finetune(evaluate_every=12, activation_checkpointing=True)
    assert runs.losses() == exact
    manifest = runs.finetune(evaluate_every=12, precision="bfloat16")
    assert runs.losses() == pytest.approx(exact, rel=0.05)
    assert runs.losses() != exact
    assert all(value.dtype == torch.float32 for value in runs.weights(manifest).values() if value.is_floating_point())


def test_a_failing_compiler_is_logged_and_training_goes_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs.finetune(evaluate_every=12)
    exact = runs.losses()

    def broken_compiler(module: torch.nn.Module, **options: Any) -> Any:
        def compiled(*arguments: Any) -> Any:
            raise RuntimeError("no C++ compiler found\nmore text")

        return compiled

    monkeypatch.setattr(torch, "compile", broken_compiler)
    caplog.set_level(logging.WARNING)
    runs.finetune(evaluate_every=12, compile=True)
    assert runs.losses() == exact
    assert "torch.compile failed, training goes on uncompiled: no C++ compiler found" in caplog.text


def test_options_that_do_not_fit_are_refused(tmp_path: Path, shards: Path) -> None:
    model = replace(MIX, pretraining=replace(MIX.pretraining, swa_last=2))
    recipe = make_recipe(shards, model)
    store = prepare_store(tmp_path, recipe)
    with pytest.raises(ConfigError, match=r"pretraining\.swa_last = 2"):
        pretrain(recipe, store, "mix", tracking=MemoryTracking(), progress=NullProgress(), run_tags={})


def test_live_metrics_have_the_agreed_names(runs: Runs) -> None:
    runs.finetune(evaluate_every=12)
    names = {name for run in runs.tracking.runs for name, _, _ in run.metrics}
    assert names >= {
        "train/loss",
        "train/learning_rate",
        "train/examples_per_second",
        "train/data_wait_share",
        "train/step_seconds",
        "holdout/map_at_100000",
        "holdout/best_map_at_100000",
        "holdout/evaluation_seconds",
        "holdout/evaluation_share",
    }
    shares = [value for run in runs.tracking.runs for _, value in run.series("train/data_wait_share")]
    assert all(0 <= value <= 1 for value in shares)


def test_a_frozen_seed_gives_the_same_curve_whatever_ran_before(tmp_path: Path, shards: Path) -> None:
    """Models do not influence each other: not by the order they are trained in, nor by the global generator."""
    curves = []
    for number in range(2):
        recipe = make_recipe(shards, MIX, BERT)
        store = prepare_store(tmp_path / str(number), recipe)
        torch.manual_seed(number)
        state = torch.get_rng_state()
        for key in ("mix", "bert") if number else ("bert", "mix"):
            tracking = MemoryTracking()
            pretrain(recipe, store, key, tracking=tracking, progress=NullProgress(), run_tags={})
            if key == "mix":
                curves.append([value for _, value in tracking.runs[0].series("train/loss")])
        assert torch.equal(torch.get_rng_state(), state)
    assert curves[0] == curves[1]


def test_every_step_is_run_once(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    run = Stepper.run

    def counting(self: Stepper, batch: Any, step: int, rate: float) -> torch.Tensor:
        steps.append(step)
        return run(self, batch, step, rate)

    monkeypatch.setattr(Stepper, "run", counting)
    manifest = runs.finetune(evaluate_every=6, learning_rate=2e-3)
    assert steps == list(range(12))
    model = load_model(runs.store, manifest)
    assert not model.training


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports torch.jit, which it deprecates
def test_a_compiled_run_gives_the_same_curve(tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    curves = []
    for compiled in (False, True):
        model = replace(BERT, overrides={**BERT.overrides, "dropout": 0.0})  # a compiler draws other dropout masks
        recipe = make_recipe(shards, replace(model, pretraining=replace(model.pretraining, compile=compiled)))
        store = prepare_store(tmp_path / str(compiled), recipe)
        tracking = MemoryTracking()
        pretrain(recipe, store, "bert", tracking=tracking, progress=NullProgress(), run_tags={})
        curves.append([value for _, value in tracking.runs[0].series("train/loss")])
    assert "training goes on uncompiled" not in caplog.text
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.slow
def test_reader_processes_give_the_same_curve_as_memory(tmp_path: Path, shards: Path) -> None:
    curves = []
    for number, data in enumerate(({}, {"num_workers": 2, "memory_budget": 1})):
        recipe = make_recipe(shards, BERT, **data)
        store = prepare_store(tmp_path / str(number), recipe)
        for stage in (pretrain, finetune):
            tracking = MemoryTracking()
            stage(recipe, store, "bert", tracking=tracking, progress=NullProgress(), run_tags={})
            curves.append([value for _, value in tracking.runs[0].series("train/loss")])
    assert curves[2:] == curves[:2]


def test_the_mean_since_the_last_point_continues_over_an_interruption() -> None:
    whole = LossMeter(torch.device("cpu"))
    for value in (0.1, 0.7, 0.3):
        whole.add(torch.tensor(value))
    first = LossMeter(torch.device("cpu"))
    first.add(torch.tensor(0.1))
    second = LossMeter(torch.device("cpu"), float(first.total), first.count)
    for value in (0.7, 0.3):
        second.add(torch.tensor(value))
    expected = whole.take()
    assert float(expected) == float(second.take()) == pytest.approx(1.1 / 3)
    whole.add(torch.tensor(5.0))
    assert float(whole.take()) == 5.0
    assert Arriving(torch.stack([expected, expected])).get().tolist() == [float(expected)] * 2


def test_rates_count_waiting_for_data_and_not_the_models_beside() -> None:
    watch = Stopwatch(seconds_before=100.0)
    for batch in BATCHES[:2]:
        waiting = watch.wait_for(None)  # type: ignore[arg-type]
        next(waiting)
        time.sleep(0.1)  # of which another model's step takes half
        with pytest.raises(StopIteration) as fed:
            waiting.send((batch, 0.05))
        assert fed.value.value is batch
        watch.steps += 1
    rates = watch.rates(batch_size=8)
    assert rates["train/data_wait_share"] > 0.8
    assert 0.05 <= rates["train/step_seconds"] < 0.1
    assert rates["train/examples_per_second"] == pytest.approx(8 / rates["train/step_seconds"])
    assert 100.1 <= watch.seconds < 110
    watch.restart()
    time.sleep(0.01)
    watch.skip(0.01)
    assert watch.rates(batch_size=8)["train/data_wait_share"] == 0
    assert watch.rates(batch_size=8)["train/step_seconds"] < 0.01
