"""The search for w0 and the weights of a rank fusion, on held-out ratings.

Presets first (equal weights, the recipe's), then random ones. Then local searches: from equal weights, from the best so
far, from starts that a Gaussian process of the starts so far proposes (scikit-optimize, ask and tell), and until the
trials are used up from points near the best. At last the weights are shrunk towards equal ones, or towards the ranking
that is trusted more than those, as far as unseen videos ask for (nested.py). Weights count by their ratios alone, so
every trial is evaluated and logged with weights that sum to 1. What a trial asks for depends on the trials before it
and the seed only: a search that is resumed from its log goes on exactly as it would have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.ensemble.nested import AMOUNTS, EQUAL, NestedResult, cross_validate, shrink
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.ensemble.preset import ORIGINAL_W0, ORIGINAL_WEIGHTS
from yt8m_assets.ensemble.proposal import (
    STEPS,
    Candidate,
    candidate,
    climb,
    model_candidate,
    perturbed_candidate,
    preset_candidate,
    random_candidate,
)
from yt8m_assets.ensemble.trial import Trial, TrialLog
from yt8m_assets.errors import CheckpointMismatchError
from yt8m_assets.evaluation.ranked import ROUNDING, ranking_map
from yt8m_assets.evaluation.ratings import Ratings
from yt8m_assets.ranking.files import TOP_K, RankingSource

__all__ = ["SearchConfig", "SearchResult", "search_weights"]
_TOO_FEW = "videos with positives are too few for folds: nothing says how searched weights do on unseen ones"
_ROUND = 300
"""Most trials of a climb from a point near the best."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found, and what it is worth."""

    w0: float
    """Place constant to fuse with."""
    weights: dict[str, float]
    """Weights to fuse with: the best trial's, shrunk towards safer ones; they sum to 1."""
    map: float
    """MAP@K with them, on the ratings they were searched on."""
    amount: float
    """How far they were shrunk: 0 = the best trial as it is, 1 = `towards`, by default equal weights with their w0."""
    reason: str
    """Why so far."""
    best: Trial
    """The best trial."""
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
    towards: str = EQUAL
    """What they are shrunk to."""

    def to_json(self) -> dict[str, Any]:
        """As plain numbers, without the trials."""
        towards = {} if self.towards == EQUAL else {"towards": self.towards}
        return {
            "w0": self.w0,
            "weights": self.weights,
            "map": self.map,
            "shrinking": {"amount": self.amount, "reason": self.reason, **towards},
            "searched": {"w0": self.best.w0, "weights": self.best.weights, "map": self.best.target},
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
    trusted: str | None = None,
) -> SearchResult:
    """Search w0 and the weights of `fuse(rankings, weights, w0, k)` for the highest MAP@K on the ratings.

    `log_path`: every trial is appended there, and a log that exists is continued. `on_trial` sees every new trial.
    `presets`: {name: (w0, weights)} to try beside equal weights; default: the original's, for models it knows. The
    best trial is at least as good as every preset and as a climb from equal weights, on these ratings.
    `trusted`: key of the ranking to shrink to where unseen videos do not tell; None: equal weights of all.

    Raises CheckpointMismatchError when the log belongs to other rankings or ratings, DataError when no class has a
    positive.
    """
    objective = FusionObjective(rankings, ratings, k)
    if presets is None:
        presets = {"original": (ORIGINAL_W0, ORIGINAL_WEIGHTS)} if set(rankings) <= set(ORIGINAL_WEIGHTS) else {}
    singles = {key: ranking_map(ranking, ratings, k).map for key, ranking in rankings.items()}
    best_single = max(singles.items(), key=lambda item: item[1])
    first = _first_candidates(objective.keys, config, presets, [best_single[0]])
    trials = _Search(objective, TrialLog(log_path), on_trial, config).run(first)
    best = max(trials, key=lambda trial: trial.target)
    nested, safe, towards = None, first[0], EQUAL
    if trusted is not None:
        safe = candidate(ORIGINAL_W0, [float(key == trusted) for key in objective.keys], "preset")
        towards = f"{trusted.replace('_', ' ')} alone"
    if config.num_folds and objective.videos().size >= config.num_folds:
        # Every ranking alone: which one is best is for each fold to find out on the other folds.
        starts = _first_candidates(objective.keys, config, presets, objective.keys)
        nested = cross_validate(objective, starts, config.num_folds, config.w0_bounds, config.seed, safe, towards)
    searched = Candidate(w0=best.w0, weights=tuple(best.weights[key] for key in objective.keys), phase=best.phase)
    amount, reason = 0.0, "search.num_folds is 0: the search is taken as it is"
    if config.num_folds:
        amount, reason = shrinking(objective, searched, safe, nested, best_single[1])
    chosen = shrink(searched, safe, amount)
    params = chosen.params(objective.keys)
    return SearchResult(
        w0=chosen.w0,
        weights={key: params[key] for key in objective.keys},
        map=objective(chosen.w0, params),
        amount=amount,
        reason=reason,
        best=best,
        trials=trials,
        equal_weights_map=trials[0].target,
        best_single=best_single,
        single_maps=singles,
        nested=nested,
        towards=towards,
    )


def shrinking(
    objective: FusionObjective, searched: Candidate, equal: Candidate, nested: NestedResult | None, least: float
) -> tuple[float, str]:
    """How far to shrink, and why: as the folds say, but not below a MAP of `least` on the hold-out as a whole.

    Without folds that could tell (`nested` None), all the way: to equal weights, or what stands for them.
    """
    wanted, why = (1.0, _TOO_FEW) if nested is None else (nested.amount, nested.reason)
    for amount in sorted((a for a in AMOUNTS if 0 < a <= wanted), reverse=True):
        point = shrink(searched, equal, amount)
        if objective(point.w0, point.params(objective.keys)) >= least - ROUNDING:
            break
    else:
        amount = 0.0
    if amount == wanted:
        return amount, why
    return amount, f"{why}; but shrunk by more than {amount:g} the best model alone is better on the hold-out"


def _first_candidates(
    keys: Sequence[str],
    config: SearchConfig,
    presets: Mapping[str, tuple[float, Mapping[str, float]]],
    alone: Sequence[str],
) -> list[Candidate]:
    """Equal weights, the presets, equal weights with a larger w0, some rankings alone, random points."""
    equal = dict.fromkeys(keys, 1.0)
    low, high = config.w0_bounds
    rows: dict[str, tuple[float, Mapping[str, float]]] = {"equal": (min(max(ORIGINAL_W0, low), high), equal)}
    rows |= dict(presets)
    rows["equal, places matter less"] = ((low * high**3) ** 0.25, equal)
    rows |= {f"{one} alone": (ORIGINAL_W0, {key: float(key == one) for key in keys}) for one in alone}
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
        self._best: tuple[Candidate, float] | None = None

    @property
    def _left(self) -> int:
        return max(0, self._config.num_trials - len(self.trials))

    def run(self, first: list[Candidate]) -> list[Trial]:
        """The first points; climbs from equal weights, from the best and from the model's; then around the best."""
        values = [self.evaluate(point) for point in first]
        known = list(zip(first, values, strict=True))  # what the model learns from: starts, and where climbs ended
        known.append(self._climb(first[0], values[0], self._left))
        best = first[int(np.argmax(values))]
        if best is not first[0]:
            known.append(self._climb(best, max(values), self._left))
        share = self._left // (2 * max(1, self._config.num_starts))
        for _ in range(self._config.num_starts):
            if not self._left:
                break
            start = self._past(len(self.trials)) or self._proposal(known)
            value = self.evaluate(start)
            known += [(start, value), self._climb(start, value, min(share, self._left))]
        while self._left:
            assert self._best is not None
            generator = np.random.default_rng([self._config.seed, len(self.trials)])
            start = perturbed_candidate(generator, self._best[0], self._config.w0_bounds)
            self._climb(start, self.evaluate(start), min(_ROUND, self._left), STEPS[1:])
        return self.trials

    def _climb(
        self, start: Candidate, value: float, budget: int, steps: Sequence[float] = STEPS
    ) -> tuple[Candidate, float]:
        return climb(self.evaluate, start, value, self._config.w0_bounds, budget, steps)

    def evaluate(self, point: Candidate) -> float:
        """Run one trial and log it, or check that the log's agrees."""
        number, params = len(self.trials), point.params(self._objective.keys)
        target = self._objective(point.w0, params)
        if self._best is None or target > self._best[1]:
            self._best = (point, target)
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

    def _proposal(self, known: Sequence[tuple[Candidate, float]]) -> Candidate:
        return model_candidate(
            [point.params(self._objective.keys) for point, _ in known],
            [value for _, value in known],
            self._objective.keys,
            self._config.w0_bounds,
            self._config.seed + len(self.trials),
        )
