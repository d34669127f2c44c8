"""Evaluation beside training, by rank 0: when the hold-out is scored, which weights are kept, which are published."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from yt8m_assets.data.dataset.batches import BatchStream
from yt8m_assets.evaluation.picking import whole_scores
from yt8m_assets.progress import Task
from yt8m_assets.tracking import TrackedRun
from yt8m_assets.training.averages import WeightAverage, measure_statistics
from yt8m_assets.training.checkpoint import Checkpoint, CheckpointWriter
from yt8m_assets.training.config import TrainingConfig
from yt8m_assets.training.evaluate import Evaluation
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest
from yt8m_assets.training.model_files import load_weights
from yt8m_assets.training.step import Stepper

logger = logging.getLogger(__name__)

Scores = dict[str, float]
Judge = Callable[[Sequence[Scores]], None]
"""Looks at the evaluations so far, and raises where the training is not worth its end (`pruning`)."""
TRACKED_NAMES = {"map": "map_at_100000"}


def evaluations_by(step: int, config: TrainingConfig) -> int:
    """How many evaluations are due up to a step: as many as `evaluate_every` allows, evenly, the last one at the end.

    It is a count of steps and never of seconds, so that the same run evaluates, and publishes, the same weights.
    """
    if not config.num_steps:
        return 0
    total = config.num_steps // (config.evaluate_every or config.num_steps)
    return step * max(total, 1) // config.num_steps


@dataclass(kw_only=True)
class Findings:
    """What the evaluations of a run have found; the part of its state that is theirs, JSON values only."""

    evaluations: list[Scores] = field(default_factory=list)
    """Hold-out evaluations: step, scores by name, seconds."""
    unevaluated: bool = False
    """Whether the evaluation of this step was interrupted, and is to be made before the next step."""
    best: Scores | None = None
    """Step and scores of the best evaluation."""
    start: Scores | None = None
    """Scores of the weights that training started from."""
    evaluation_seconds: float = 0.0
    """Seconds spent on evaluations, the first and interrupted ones included."""


@dataclass(kw_only=True)
class Validator:
    """Scores the present weights where due, keeps the best ones, and compares what may be published at the end.

    Without `evaluate` (no hold-out, or not rank 0) nothing is scored. `hands_on`: a later stage goes on from what is
    published, so the best weights keep their optimiser state.
    """

    evaluate: Evaluation | None
    stepper: Stepper
    averages: Mapping[str, WeightAverage]
    source: BatchStream
    writer: CheckpointWriter
    stop: StopRequest
    tracked: TrackedRun
    task: Task
    hands_on: bool
    judge: Judge | None = None
    findings: Findings = field(default_factory=Findings)

    def __post_init__(self) -> None:
        self.config, self.model = self.stepper.config, self.stepper.model

    @property
    def keeps_best(self) -> bool:
        """Whether the best evaluated weights are kept to be published."""
        return not self.hands_on if self.config.keep_best is None else self.config.keep_best

    def find_best(self, allow_fallback: bool) -> None:
        """Look, in a resumed run, for the best weights so far; where they are lost the present ones are to be scored.

        Raises CorruptArtifactError where they are damaged, unless `allow_fallback` goes on without them.
        """
        findings, found = self.findings, self.writer.checkpoints.best(allow_fallback)
        if found is not None:  # may be of a later step: evaluated before the interruption, after the checkpoint
            findings.best = found.state["best"]
        elif self.keeps_best and findings.best is not None:
            logger.warning("the best weights, of step %s, are lost: the present ones are scored", findings.best["step"])
            findings.best, findings.unevaluated = None, True

    def begin(self, step: int, train_seconds: float) -> bool:
        """Score the weights that training starts from, or make up for an interrupted evaluation of this step.

        Whether early stopping had said enough before the interruption.
        """
        findings = self.findings
        if self.evaluate is None:
            return False
        if step == 0 and findings.start is None and self.evaluate.scores_start:
            findings.start = self.score(step)
            if findings.start is not None:
                self.tracked.log_metrics(tracked_names(findings.start), 0)
        elif findings.unevaluated:
            self.evaluate_now(step, train_seconds)
        return self.has_enough

    def after_step(self, step: int, train_seconds: float) -> bool:
        """Score the hold-out where due after `step` steps; whether early stopping says enough."""
        config, number = self.config, evaluations_by(step, self.config)
        if number == evaluations_by(step - 1, config):
            return False
        if "swa" in self.averages and evaluations_by(config.num_steps, config) - number < config.swa_last:
            self.averages["swa"].update()
        if self.evaluate is None:
            return False
        self.evaluate_now(step, train_seconds)
        return self.has_enough

    @property
    def has_enough(self) -> bool:
        """Whether the last `early_stopping` evaluations brought no better score. Raises what the judge raises."""
        if self.judge is not None:
            self.judge(self.findings.evaluations)
        patience, best = self.config.early_stopping, self.findings.best
        if patience is None or best is None:
            return False
        return sum(entry["step"] > best["step"] for entry in self.findings.evaluations) >= patience

    def evaluate_now(self, step: int, train_seconds: float) -> None:
        """Evaluate this step, keep the weights if they are the best and wanted, show and track the scores."""
        assert self.evaluate is not None
        findings, headline = self.findings, self.evaluate.headline
        self.stepper.check()
        before = findings.evaluation_seconds
        scores = self.score(step)
        if scores is None:
            return
        seconds = findings.evaluation_seconds - before
        findings.evaluations.append({"step": step, **scores, "seconds": seconds})
        if findings.best is None or scores[headline] > findings.best[headline]:
            findings.best = {"step": step, **scores}
            if self.keeps_best:
                self.writer.save_best(self.best_checkpoint(findings.best))
        best = findings.best[headline]
        share = findings.evaluation_seconds / max(train_seconds, 1e-9)
        times = {"holdout/evaluation_seconds": seconds, "holdout/evaluation_share": share}
        self.tracked.log_metrics({**tracked_names(scores), **tracked_names({headline: best}, "best_"), **times}, step)
        if self.keeps_best and findings.best["step"] == step:
            self.tracked.log_checkpoint(f"step-{step}", step, tracked_names(scores))
        self.task.update(**{headline: scores[headline], "best": best})

    def score(self, step: int) -> Scores | None:
        """The hold-out scores of the present weights; None, and a note of it, when asked to stop meanwhile."""
        assert self.evaluate is not None
        started, scores = time.perf_counter(), None
        self.findings.unevaluated = False
        try:
            scores = self.evaluate(self.model, self.stop)
        except EvaluationInterrupted:
            self.findings.unevaluated = True
            text = "asked to stop while the hold-out was scored at step %d: the rerun scores it again"
            logger.warning(text, step)
        self.findings.evaluation_seconds += time.perf_counter() - started
        return scores

    def best_checkpoint(self, best: Scores) -> Checkpoint:
        """The present weights with their scores, and with the optimiser's state where a later stage goes on from it."""
        optimizer, groups = self.stepper.optimizer, {"model": dict(self.model.state_dict())}
        if self.hands_on:
            groups["optimizer"] = optimizer.state_tensors()
        return Checkpoint({"best": dict(best), "optimizer_steps": optimizer.num_steps}, groups)

    def compare(self, step: int) -> dict[str, Scores | None]:
        """Hold-out scores of the candidates: best or last checkpoint, EMA, SWA; None for what no evaluation compared.

        The model keeps its weights. Raises EvaluationInterrupted when asked to stop.
        """
        findings = self.findings
        averages = {name: average for name, average in self.averages.items() if average.count or self.evaluate is None}
        if self.evaluate is None:
            return {name: self.score_average(name, step) for name in averages} or {"last": None}
        if not findings.evaluations or findings.best is None:  # a run of no steps
            return {"last": findings.start}
        kept = ("best", findings.best) if self.keeps_best else ("last", findings.evaluations[-1])
        return {kept[0]: scores_of(kept[1])} | {name: self.score_average(name, step) for name in averages}

    def pick(self, candidates: Mapping[str, Scores | None]) -> str:
        """The candidate with the best score; of equals the first."""
        headline = self.evaluate.headline if self.evaluate is not None else ""
        return max(candidates, key=lambda name: (candidates[name] or {}).get(headline, 0.0))

    def select(self, winner: str, step: int) -> None:
        """Put the chosen weights into the model, and what a later stage goes on from into the optimiser."""
        if winner == "best":
            best = self.writer.checkpoints.best()
            assert best is not None
            load_weights(self.model, best.groups["model"], "best checkpoint")
            if self.hands_on:
                self.stepper.optimizer.load_state(best.groups["optimizer"], best.state["optimizer_steps"])
        elif winner in self.averages:
            self.use_average(winner, step)

    def score_average(self, name: str, step: int) -> Scores | None:
        """Hold-out scores of averaged weights, None without an evaluation; the model's own are put back."""
        kept = {key: value.clone() for key, value in self.model.state_dict().items()}
        try:
            self.use_average(name, step)
            return None if self.evaluate is None else self.evaluate(self.model, self.stop)
        finally:
            load_weights(self.model, kept, "training")

    def use_average(self, name: str, step: int) -> None:
        """Put averaged weights and the statistics measured for them into the model."""
        average = self.averages[name]
        load_weights(self.model, {**self.model.state_dict(), **average.average, **(average.statistics or {})}, name)
        if average.statistics is None:
            average.statistics = measure_statistics(self.stepper, self.source, step, self.stop)


def scores_of(evaluation: Scores) -> Scores:
    """An evaluation without its step and time."""
    return {name: value for name, value in evaluation.items() if name not in ("step", "seconds")}


def tracked_names(scores: Scores, prefix: str = "") -> Scores:
    """Scores under the names that the tracker shows; those on halves of the videos are for the report alone."""
    return {f"holdout/{prefix}{TRACKED_NAMES.get(name, name)}": value for name, value in whole_scores(scores).items()}
