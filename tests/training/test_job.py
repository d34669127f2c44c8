"""What is compared at the end of a run, what is picked, and what is said of it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.training.support import MIX, make_recipe, prepare_store
from yt8m_assets.progress import Counter
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.stages.training import make_job
from yt8m_assets.tracking import NullRun
from yt8m_assets.training import job as module
from yt8m_assets.training.distributed import Team
from yt8m_assets.training.interruption import StopRequest
from yt8m_assets.training.job import describe_training, num_parameters, summarise
from yt8m_assets.training.trainer import TrainerState
from yt8m_assets.training.validate import Findings, Validator, scores_of

EVALUATIONS = [{"step": 4, "map": 0.6, "seconds": 1.0}, {"step": 8, "map": 0.5, "seconds": 1.0}]


def finished(evaluated: bool = True, *, keeps_best: bool = True, hands_on: bool = False, **changes: Any) -> Any:
    """A trainer after its last step, whose averages have the scores that they are given."""
    findings = Findings(start={"map": 0.1}, evaluation_seconds=4.0)
    if evaluated:
        findings.evaluations, findings.best = list(EVALUATIONS), {"step": 4, "map": 0.6}
    config = SimpleNamespace(batch_size=8, keep_best=keeps_best)
    stepper = SimpleNamespace(config=config, model=nn.Linear(3, 2), optimizer=SimpleNamespace(num_steps=8))
    parts: Any = {
        "evaluate": SimpleNamespace(headline="map") if evaluated else None,
        "averages": {},
        "stepper": stepper,
        "findings": findings,
        "hands_on": hands_on,
        **dict.fromkeys(("source", "writer", "stop", "tracked", "task")),
        **changes,
    }
    schedule = SimpleNamespace(first_examples=100)
    state = TrainerState(step=8, train_seconds=16.0)
    return SimpleNamespace(state=state, validator=Validator(**parts), config=config, stepper=stepper, schedule=schedule)


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def score_average(self: Any, name: str, step: int) -> dict[str, float] | None:
        return None if self.evaluate is None else {"map": self.averages[name].score}

    monkeypatch.setattr(Validator, "score_average", score_average)


def average(score: float, count: int = 1) -> Any:
    return SimpleNamespace(count=count, score=score)


def compare(trainer: Any) -> Any:
    return trainer.validator.compare(trainer.state.step)


def pick(trainer: Any, candidates: Any) -> str:
    return trainer.validator.pick(candidates)


def test_without_an_evaluation_the_last_weights_or_their_average_are_published() -> None:
    assert compare(finished(evaluated=False)) == {"last": None}
    averaged = finished(evaluated=False, averages={"ema": average(0.9)})
    assert compare(averaged) == {"ema": None}
    assert pick(averaged, {"ema": None}) == "ema"


def test_a_run_of_no_steps_is_worth_what_it_started_from() -> None:
    trainer = finished(evaluated=False, evaluate=SimpleNamespace(headline="map"))
    assert compare(trainer) == {"last": {"map": 0.1}}


def test_the_kept_weights_and_the_averages_that_hold_something_compete() -> None:
    trainer = finished(averages={"ema": average(0.7), "swa": average(0.9, count=0)})
    assert compare(trainer) == {"best": {"map": 0.6}, "ema": {"map": 0.7}}
    assert compare(finished(keeps_best=False)) == {"last": {"map": 0.5}}


@pytest.mark.parametrize(
    ("scores", "winner"), [((0.6, 0.6, 0.5), "best"), ((0.5, 0.6, 0.7), "swa"), ((0, 0, 0), "best")]
)
def test_the_best_score_is_picked_and_the_first_of_equals(scores: tuple[float, ...], winner: str) -> None:
    candidates = {name: {"map": score} for name, score in zip(("best", "ema", "swa"), scores, strict=True)}
    assert pick(finished(), candidates) == winner
    assert pick(finished(), {"last": None, "ema": {"map": 0.1}}) == "ema"


def test_rates_and_shares_are_of_training_time() -> None:
    summary = summarise(finished(), "best", {"best": {"map": 0.6}, "ema": None})
    assert (summary["examples_per_second"], summary["seconds"]) == (8 * 8 / 16.0, 20.0)
    assert (summary["evaluation_seconds"], summary["evaluation_share"]) == (4.0, 0.25)
    assert (summary["candidates"], summary["scores"]) == ({"best": 0.6, "ema": None}, {"map": 0.6})
    assert (summary["best_step"], summary["steps"], summary["parameters"]) == (4, 8, 8)
    plain = summarise(finished(evaluated=False), "last", {"last": None})
    assert (plain["best_step"], plain["headline"], plain["scores"], plain["candidates"]) == (
        None,
        None,
        {},
        {"last": None},
    )


def test_what_is_handed_on_counts_the_examples_of_the_published_weights() -> None:
    candidates = {"best": {"map": 0.6}}
    assert describe_training(finished(), "best", candidates)["examples"] == 100 + 8 * 8
    content = describe_training(finished(hands_on=True), "best", candidates)
    assert (content["examples"], content["steps"]) == (100 + 4 * 8, 8)
    assert describe_training(finished(hands_on=True), "ema", candidates)["examples"] == 100 + 8 * 8
    assert content["evaluations"] == [{"step": 4, "map": 0.6}, {"step": 8, "map": 0.5}]
    assert scores_of(EVALUATIONS[0]) == {"map": 0.6}


def test_frozen_parameters_are_not_counted() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad = False
    assert num_parameters(model) == 6


@pytest.mark.parametrize("asked", [False, True])
def test_activations_are_made_anew_where_that_is_asked_for(
    asked: bool, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(shards, replace(MIX, pretraining=replace(MIX.pretraining, activation_checkpointing=asked)))
    store = prepare_store(tmp_path, recipe)
    seen: list[bool] = []
    monkeypatch.setattr(module, "recompute_activations", lambda model, *, compiled: seen.append(compiled))
    job = make_job(recipe, store, resolve_inputs(recipe, store, Node("pretrained_model", "mix")), allow_fallback=False)
    module.prepare_trainer(job, Team(), NullRun(), Counter(), StopRequest())
    assert seen == [False] * asked
