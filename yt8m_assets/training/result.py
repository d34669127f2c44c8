"""What a finished run publishes: which weights, and what is said about them."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from yt8m_assets.training.averaging import WeightAverage
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import EvaluationInterrupted, TrainingPreempted
from yt8m_assets.training.loop import LoopState, TrainingLoop
from yt8m_assets.training.tensors import load_weights


def compare_weights(loop: TrainingLoop) -> dict[str, float | None]:
    """Hold-out MAP of the candidates: best checkpoint, EMA, SWA; without an evaluation just what is to be published.

    Raises TrainingPreempted after saving when asked to stop: the rerun begins with this comparison.
    """
    if loop.evaluate is None:
        return {"ema": None} if loop.ema is not None else {"last": None}
    if loop.state.best is None:  # a run of no steps
        return {"last": loop.state.start_map}
    candidates: dict[str, float | None] = {"best": loop.state.best["map"]}
    for name, average in (("ema", loop.ema), ("swa", loop.swa)):
        if average is not None and average.count:
            try:
                candidates[name] = score_average(loop, average, name)
            except EvaluationInterrupted as interrupted:
                loop.save(alone=True)
                raise TrainingPreempted(loop.state.step) from interrupted
    return candidates


def score_average(loop: TrainingLoop, average: WeightAverage, name: str) -> float:
    """Hold-out MAP of averaged weights; the model's own are put back. Raises EvaluationInterrupted."""
    assert loop.evaluate is not None
    kept = {key: value.clone() for key, value in loop.model.state_dict().items()}
    load_weights(loop.model, average.tensors(), name)
    try:
        return loop.evaluate(loop.model, loop.stop)
    finally:
        load_weights(loop.model, kept, "training")


def select_weights(loop: TrainingLoop, winner: str) -> None:
    """Put the chosen weights into the model."""
    if winner == "best":
        assert loop.checkpoints is not None
        best = loop.checkpoints.best()
        assert best is not None
        load_weights(loop.model, best.groups["model"], "best checkpoint")
    elif winner in ("ema", "swa"):
        average = loop.ema if winner == "ema" else loop.swa
        assert average is not None
        load_weights(loop.model, average.tensors(), winner)


def describe_training(loop: TrainingLoop, winner: str, candidates: Mapping[str, float | None]) -> dict[str, Any]:
    """The content of `training.json`: the same run gives the same values, so no times and no rates."""
    state = loop.state
    return {
        "steps": state.step,
        "examples": loop.schedule.first_examples + state.step * loop.config.batch_size,
        "optimizer_steps": loop.stepper.optimizer.num_steps,
        "weights": winner,
        "candidates": dict(candidates),
        "start_map": state.start_map,
        "best": state.best,
        "evaluations": [{"step": entry["step"], "map": entry["map"]} for entry in state.evaluations],
    }


def summarise(
    state: LoopState,
    config: TrainingConfig,
    winner: str,
    candidates: Mapping[str, float | None],
    model: nn.Module,
) -> dict[str, Any]:
    """What people want to know of the run, as JSON values."""
    summary = {
        "steps": state.step,
        "parameters": num_parameters(model),
        "seconds": round(state.train_seconds + state.evaluation_seconds, 3),
        "examples_per_second": round(state.step * config.batch_size / max(state.train_seconds, 1e-9), 2),
        "evaluation_seconds": round(state.evaluation_seconds, 3),
        "evaluation_share": round(state.evaluation_seconds / max(state.train_seconds, 1e-9), 3),
        "weights": winner,
        "candidates": dict(candidates),
        "map": candidates[winner],
        "start_map": state.start_map,
        "best_step": int(state.best["step"]) if state.best else None,
        "history": state.history,
        "evaluations": state.evaluations,
    }
    return json.loads(json.dumps(summary))


def num_parameters(model: nn.Module) -> int:
    """Trainable numbers of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
