"""The search for w0 and the weights of a rank fusion, on held-out ratings.

Presets first (equal weights, the original's), then random ones, then a Gaussian process that asks for the next
(scikit-optimize, ask and tell), then a coordinate search around the best. Weights count by their ratios alone, so every
trial is evaluated and logged with weights that sum to 1. What a trial asks for depends on the trials before it and the
seed only: a search that is resumed from its log goes on exactly as it would have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.ensemble.nested import NestedResult, cross_validate
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.preset import ORIGINAL_W0, ORIGINAL_WEIGHTS
from yt8m_assets.ensemble.proposal import (
    Candidate,
    candidate,
    coordinate_search,
    model_candidate,
    preset_candidate,
    random_candidate,
)
from yt8m_assets.ensemble.trial import Trial, TrialLog
from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.evaluation.ranked import TOP_K, ranking_map
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.prediction.ranking import RankingSource

__all__ = ["SearchConfig", "SearchResult", "search_weights"]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found, and what it is worth."""

    w0: float
    """Place constant of the best trial."""
    weights: dict[str, float]
    """Weights of the best trial; they sum to 1."""
    map: float
    """MAP@K of the best trial, on the ratings it was searched on."""
    trials: list[Trial]
    """Every trial in order."""
    equal_weights_map: float
    """MAP@K of equal weights with the original's w0: the first trial."""
    best_single: tuple[str, float]
    """Key and MAP@K of the best ranking alone."""
    single_maps: dict[str, float]
    """MAP@K of every ranking alone."""
    nested: NestedResult | None
    """MAP on unseen videos by cross-validation; None when it was left out or there are too few videos."""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, without the trials."""
        return {
            "w0": self.w0,
            "weights": self.weights,
            "map": self.map,
            "equal_map": self.equal_weights_map,
            "best_single": {"key": self.best_single[0], "map": self.best_single[1]},
            "single_maps": self.single_maps,
            "num_trials": len(self.trials),
            "nested": None if self.nested is None else self.nested.to_json(),
        }


def search_weights(
    rankings: Mapping[str, RankingSource],
    ratings: Ratings,
    *,
    config: SearchConfig,
    log_path: Path | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    presets: Mapping[str, tuple[float, Mapping[str, float]]] | None = None,
    k: int = TOP_K,
) -> SearchResult:
    """Search w0 and the weights of `fuse(rankings, weights, w0, k)` for the highest MAP@K on the ratings.

    `log_path`: every trial is appended there, and a log that exists is continued. `on_trial` sees every new trial.
    `presets`: {name: (w0, weights)} to try beside equal weights; default: the original's, for models it knows. The
    result is at least as good as every preset, on these ratings. Raises CheckpointMismatchError when the log belongs
    to other rankings or ratings, DataError when no class has a positive.
    """
    objective = FusionObjective(rankings, ratings, k)
    if presets is None:
        presets = {"original": (ORIGINAL_W0, ORIGINAL_WEIGHTS)} if set(rankings) <= set(ORIGINAL_WEIGHTS) else {}
    singles = {key: ranking_map(ranking, ratings, k).map for key, ranking in rankings.items()}
    best_single = max(singles.items(), key=lambda item: item[1])
    first = _first_candidates(objective.keys, config, presets, best_single[0])
    trials = _Search(objective, TrialLog(log_path), on_trial, config).run(first)
    best = max(trials, key=lambda trial: trial.target)
    nested = None
    if config.num_folds and objective.videos().size >= config.num_folds:
        nested = cross_validate(objective, first, config.num_folds, config.w0_bounds, config.seed)
    return SearchResult(
        w0=best.w0,
        weights=best.weights,
        map=best.target,
        trials=trials,
        equal_weights_map=trials[0].target,
        best_single=best_single,
        single_maps=singles,
        nested=nested,
    )


def _first_candidates(
    keys: Sequence[str],
    config: SearchConfig,
    presets: Mapping[str, tuple[float, Mapping[str, float]]],
    best_single: str,
) -> list[Candidate]:
    """Equal weights, the presets, equal weights with a larger w0, the best ranking alone, random points."""
    equal = dict.fromkeys(keys, 1.0)
    low, high = config.w0_bounds
    rows: dict[str, tuple[float, Mapping[str, float]]] = {"equal": (min(max(ORIGINAL_W0, low), high), equal)}
    rows |= dict(presets)
    rows["equal, places matter less"] = ((low * high**3) ** 0.25, equal)
    rows["best single"] = (ORIGINAL_W0, {key: float(key == best_single) for key in keys})
    generator = np.random.default_rng(config.seed)
    named = [preset_candidate(name, keys, w0, weights) for name, (w0, weights) in rows.items()]
    return named + [random_candidate(generator, len(keys), config.w0_bounds) for _ in range(config.num_initial_points)]


class _Search:
    """Runs the trials; the first ones are taken from the log where it has them."""

    def __init__(
        self,
        objective: FusionObjective,
        log: TrialLog,
        on_trial: Callable[[Trial], None] | None,
        config: SearchConfig,
    ) -> None:
        self._objective, self._log, self._on_trial, self._config = objective, log, on_trial, config
        self.trials: list[Trial] = []

    def run(self, first: list[Candidate]) -> list[Trial]:
        """Presets and random points, the model's proposals, the refinement."""
        for point in first:
            self.evaluate(point)
        for number in range(len(first), self._config.num_trials):
            self.evaluate(self._past(number) or self._proposal(number))
        best = max(self.trials, key=lambda trial: trial.target)
        start = candidate(best.w0, [best.params[key] for key in self._objective.keys], best.phase)
        coordinate_search(self.evaluate, start, best.target, self._config.w0_bounds, self._config.num_refinements)
        return self.trials

    def evaluate(self, point: Candidate) -> float:
        """Run one trial and log it, or check that the log's agrees."""
        number, params = len(self.trials), point.params(self._objective.keys)
        target = self._objective(point.w0, params)
        if number < len(self._log.past):
            past = self._log.past[number]
            if dict(past.params) != params or past.target != target:
                raise CheckpointMismatchError(
                    f"trial {number} of the search log has params {dict(past.params)} and target {past.target}, now "
                    f"{params} and {target}: the log belongs to other rankings, ratings or settings; move it away"
                )
            self.trials.append(past)
            return target
        trial = self._log.append(Trial(number=number, target=target, params=params, phase=point.phase))
        self.trials.append(trial)
        if self._on_trial is not None:
            self._on_trial(trial)
        return target

    def _past(self, number: int) -> Candidate | None:
        """The point of a logged trial: asking the model again would only cost time."""
        if number >= len(self._log.past):
            return None
        trial = self._log.past[number]
        weights = tuple(trial.params.get(key, float("nan")) for key in self._objective.keys)
        return Candidate(w0=trial.w0, weights=weights, phase=trial.phase)

    def _proposal(self, number: int) -> Candidate:
        return model_candidate(
            [trial.params for trial in self.trials],
            [trial.target for trial in self.trials],
            self._objective.keys,
            self._config.w0_bounds,
            self._config.seed + number,
        )
