"""Evaluation beside training, by rank 0: when the hold-out is scored, what becomes of the score."""

import logging
import time
from typing import TYPE_CHECKING

from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.training.checkpoint import Checkpoint
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.interruption import EvaluationInterrupted

if TYPE_CHECKING:
    from yt8m_assets.training.loop import TrainingLoop

logger = logging.getLogger(__name__)

TRACKED_NAMES = {"map": "map_at_100000"}


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
    if state.step == 0 and state.start is None and loop.evaluate.scores_start:
        state.start = score_hold_out(loop)
        if loop.tracked is not None and state.start is not None:
            loop.tracked.log_metrics(tracked_names(state.start), 0)
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
    """Evaluate this step, and keep the weights if they are the best and wanted."""
    assert loop.evaluate is not None
    state, headline = loop.state, loop.evaluate.headline
    loop.stepper.check()
    before = state.evaluation_seconds
    scores = score_hold_out(loop)
    if scores is None:
        return
    seconds = state.evaluation_seconds - before
    state.evaluations.append({"step": state.step, **scores, "seconds": seconds})
    if state.best is None or scores[headline] > state.best[headline]:
        state.best = {"step": state.step, **scores}
        if loop.writer is not None and loop.keeps_best:
            loop.writer.save_best(best_checkpoint(loop))
    report_evaluation(loop, scores, seconds)


def best_checkpoint(loop: "TrainingLoop") -> Checkpoint:
    """The present weights with their scores, and with the optimiser's state where a later stage goes on from it."""
    assert loop.state.best is not None
    optimizer, groups = loop.stepper.optimizer, {"model": dict(loop.model.state_dict())}
    if loop.hands_on:
        groups["optimizer"] = optimizer.state_tensors()
    return Checkpoint({"best": dict(loop.state.best), "optimizer_steps": optimizer.num_steps}, groups)


def score_hold_out(loop: "TrainingLoop") -> dict[str, float] | None:
    """The hold-out scores of the present weights; None when training was asked to stop meanwhile, which is noted."""
    assert loop.evaluate is not None
    state = loop.state
    started = time.perf_counter()
    scores, state.unevaluated = None, False
    try:
        scores = loop.evaluate(loop.model, loop.stop)
    except EvaluationInterrupted:
        state.unevaluated = True
        logger.warning("asked to stop while the hold-out was scored at step %d: the rerun scores it again", state.step)
    seconds = time.perf_counter() - started
    state.evaluation_seconds += seconds
    loop.watch.started += seconds  # rates and training time are those of training alone
    loop.session_start += seconds
    return scores


def has_enough(loop: "TrainingLoop") -> bool:
    """Whether the last `early_stopping` evaluations brought no better score."""
    config, best = loop.config, loop.state.best
    if config.early_stopping is None or best is None:
        return False
    return sum(entry["step"] > best["step"] for entry in loop.state.evaluations) >= config.early_stopping


def report_evaluation(loop: "TrainingLoop", scores: dict[str, float], seconds: float) -> None:
    """Show and track one evaluation."""
    assert loop.state.best is not None
    assert loop.evaluate is not None
    headline = loop.evaluate.headline
    best = loop.state.best[headline]
    metrics = {
        **tracked_names(scores),
        **tracked_names({headline: best}, "best_"),
        "holdout/evaluation_seconds": seconds,
        "holdout/evaluation_share": loop.state.evaluation_seconds / max(loop.train_seconds(), 1e-9),
    }
    if loop.tracked is not None:
        loop.tracked.log_metrics(metrics, loop.state.step)
    if loop.task is not None:
        loop.task.update(**{headline: scores[headline], "best": best})


def tracked_names(scores: dict[str, float], prefix: str = "") -> dict[str, float]:
    """Scores under the names that the tracker shows; those on halves of the videos are for the report alone."""
    return {f"holdout/{prefix}{TRACKED_NAMES.get(name, name)}": value for name, value in whole_scores(scores).items()}
