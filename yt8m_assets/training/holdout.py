"""Evaluation beside training, by rank 0: when the hold-out is scored, what becomes of the score."""

import logging
import time
from typing import TYPE_CHECKING

from yt8m_assets.training.checkpoint import Checkpoint
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import EvaluationInterrupted

if TYPE_CHECKING:
    from yt8m_assets.training.loop import TrainingLoop

logger = logging.getLogger(__name__)


def evaluations_by(step: int, config: TrainingConfig) -> int:
    """How many evaluations are due up to a step: as many as `evaluate_every` allows, evenly, the last one at the end.

    It is a count of steps and never of seconds, so that the same run evaluates, and publishes, the same weights.
    """
    if not config.num_steps:
        return 0
    total = config.num_steps // (config.evaluate_every or config.num_steps)
    return step * max(total, 1) // config.num_steps


def evaluate_first(loop: "TrainingLoop") -> bool:
    """Score the weights that training starts from, or make up for an interrupted evaluation (rank 0).

    Whether early stopping has said enough before the interruption.
    """
    state = loop.state
    if loop.evaluate is None:
        return False
    if state.step == 0 and state.start_map is None:
        state.start_map = score_hold_out(loop)
        if loop.tracked is not None and state.start_map is not None:
            loop.tracked.log_metrics({"holdout/map_at_100000": state.start_map}, 0)
    elif state.unevaluated:
        evaluate_now(loop)
    return has_enough(loop)


def evaluate_if_due(loop: "TrainingLoop") -> bool:
    """Score the hold-out where due (rank 0); whether early stopping says enough."""
    config, step = loop.config, loop.state.step
    number = evaluations_by(step, config)
    if loop.evaluate is None or number == evaluations_by(step - 1, config):
        return False
    if loop.swa is not None and evaluations_by(config.num_steps, config) - number < config.swa_last:
        loop.swa.update()
    evaluate_now(loop)
    return has_enough(loop)


def evaluate_now(loop: "TrainingLoop") -> None:
    """Evaluate this step and keep the best weights."""
    state = loop.state
    loop.stepper.check()
    before = state.evaluation_seconds
    score = score_hold_out(loop)
    if score is None:
        return
    seconds = state.evaluation_seconds - before
    state.evaluations.append({"step": state.step, "map": score, "seconds": seconds})
    if state.best is None or score > state.best["map"]:
        state.best = {"step": state.step, "map": score}
        if loop.checkpoints is not None:
            loop.checkpoints.save_best(Checkpoint(dict(state.best), {"model": dict(loop.model.state_dict())}))
    report_evaluation(loop, score, seconds)


def score_hold_out(loop: "TrainingLoop") -> float | None:
    """The hold-out MAP of the present weights; None when training was asked to stop meanwhile, which is noted."""
    assert loop.evaluate is not None
    state = loop.state
    started = time.perf_counter()
    score, state.unevaluated = None, False
    try:
        score = loop.evaluate(loop.model, loop.stop)
    except EvaluationInterrupted:
        state.unevaluated = True
        logger.warning("asked to stop while the hold-out was scored at step %d: the rerun scores it again", state.step)
    seconds = time.perf_counter() - started
    state.evaluation_seconds += seconds
    loop.watch.started += seconds  # rates and training time are those of training alone
    loop.session_start += seconds
    return score


def has_enough(loop: "TrainingLoop") -> bool:
    """Whether the last `early_stopping` evaluations brought no better MAP."""
    config, best = loop.config, loop.state.best
    if config.early_stopping is None or best is None:
        return False
    return sum(entry["step"] > best["step"] for entry in loop.state.evaluations) >= config.early_stopping


def report_evaluation(loop: "TrainingLoop", score: float, seconds: float) -> None:
    """Show and track one evaluation."""
    assert loop.state.best is not None
    best = loop.state.best["map"]
    metrics = {
        "holdout/map_at_100000": score,
        "holdout/best_map_at_100000": best,
        "holdout/evaluation_seconds": seconds,
        "holdout/evaluation_share": loop.state.evaluation_seconds / max(loop.train_seconds(), 1e-9),
    }
    if loop.tracked is not None:
        loop.tracked.log_metrics(metrics, loop.state.step)
    if loop.task is not None:
        loop.task.update(map=score, best=best)
