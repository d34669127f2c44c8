"""What a finished run publishes: which weights, and what is said about them."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from yt8m_assets.training.averaging import WeightAverage
from yt8m_assets.training.interruption import EvaluationInterrupted, TrainingPreempted
from yt8m_assets.training.loop import TrainingLoop
from yt8m_assets.training.statistics import measure_statistics
from yt8m_assets.training.tensors import load_weights

Scores = dict[str, float] | None


def compare_weights(loop: TrainingLoop) -> dict[str, Scores]:
    """Hold-out scores of the candidates: best or last checkpoint, EMA, SWA; None for what no evaluation compared.

    Raises TrainingPreempted after saving when asked to stop: the rerun begins with this comparison.
    """
    state = loop.state
    if loop.evaluate is None:
        return {"last": None} if loop.ema is None else {"ema": score_average(loop, loop.ema, "ema")}
    if not state.evaluations or state.best is None:  # a run of no steps
        return {"last": state.start}
    kept = ("best", state.best) if loop.keeps_best else ("last", state.evaluations[-1])
    candidates: dict[str, Scores] = {kept[0]: scores_of(kept[1])}
    for name, average in (("ema", loop.ema), ("swa", loop.swa)):
        if average is not None and average.count:
            candidates[name] = score_average(loop, average, name)
    return candidates


def scores_of(evaluation: Mapping[str, float]) -> dict[str, float]:
    """An evaluation without its step and time."""
    return {name: value for name, value in evaluation.items() if name not in ("step", "seconds")}


def pick(loop: TrainingLoop, candidates: Mapping[str, Scores]) -> str:
    """The candidate with the best score; of equals the first."""
    if loop.evaluate is None:
        return next(iter(candidates))
    headline = loop.evaluate.headline
    return max(candidates, key=lambda name: (candidates[name] or {}).get(headline, 0.0))


def score_average(loop: TrainingLoop, average: WeightAverage, name: str) -> Scores:
    """Hold-out scores of averaged weights, None without an evaluation; the model's own are put back.

    Raises TrainingPreempted after saving when asked to stop.
    """
    kept = {key: value.clone() for key, value in loop.model.state_dict().items()}
    try:
        use_average(loop, average, name)
        return None if loop.evaluate is None else loop.evaluate(loop.model, loop.stop)
    except EvaluationInterrupted as interrupted:
        load_weights(loop.model, kept, "training")
        loop.save(alone=True, wait=True)
        raise TrainingPreempted(loop.state.step) from interrupted
    finally:
        load_weights(loop.model, kept, "training")


def use_average(loop: TrainingLoop, average: WeightAverage, name: str) -> None:
    """Put averaged weights and the statistics measured for them into the model. Raises EvaluationInterrupted."""
    load_weights(loop.model, {**loop.model.state_dict(), **average.average, **(average.statistics or {})}, name)
    if average.statistics is None:
        average.statistics = measure_statistics(loop)


def select_weights(loop: TrainingLoop, winner: str) -> None:
    """Put the chosen weights into the model, and what a later stage goes on from into the optimiser."""
    if winner == "best":
        assert loop.checkpoints is not None
        best = loop.checkpoints.best()
        assert best is not None
        load_weights(loop.model, best.groups["model"], "best checkpoint")
        if loop.hands_on:
            loop.stepper.optimizer.load_state(best.groups["optimizer"], best.state["optimizer_steps"])
    elif winner in ("ema", "swa"):
        average = loop.ema if winner == "ema" else loop.swa
        assert average is not None
        use_average(loop, average, winner)


def describe_training(loop: TrainingLoop, winner: str, candidates: Mapping[str, Scores]) -> dict[str, Any]:
    """The content of `training.json`: the same run gives the same values, so no times and no rates."""
    state = loop.state
    goes_on_from = int(state.best["step"]) if winner == "best" and loop.hands_on and state.best else state.step
    return {
        "steps": state.step,
        "examples": loop.schedule.first_examples + goes_on_from * loop.config.batch_size,
        "optimizer_steps": loop.stepper.optimizer.num_steps,
        "weights": winner,
        "candidates": dict(candidates),
        "start": state.start,
        "best": state.best,
        "evaluations": [{"step": entry["step"], **scores_of(entry)} for entry in state.evaluations],
    }


def summarise(loop: TrainingLoop, winner: str, candidates: Mapping[str, Scores]) -> dict[str, Any]:
    """What people want to know of the run, as JSON values.

    The scores of what is published stand under their names (`map`; in pre-training `gap_at_20`, ...).
    """
    state, headline = loop.state, loop.evaluate.headline if loop.evaluate else None
    summary = {
        "steps": state.step,
        "parameters": num_parameters(loop.model),
        "seconds": round(state.train_seconds + state.evaluation_seconds, 3),
        "examples_per_second": round(state.step * loop.config.batch_size / max(state.train_seconds, 1e-9), 2),
        "evaluation_seconds": round(state.evaluation_seconds, 3),
        "evaluation_share": round(state.evaluation_seconds / max(state.train_seconds, 1e-9), 3),
        "weights": winner,
        "headline": headline,
        "candidates": {name: (scores or {}).get(str(headline)) for name, scores in candidates.items()},
        "scores": candidates[winner] or {},
        "best_step": int(state.best["step"]) if state.best else None,
        "start": state.start,
        "history": state.history,
        "evaluations": state.evaluations,
    }
    return json.loads(json.dumps(summary))


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
