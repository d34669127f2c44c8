"""What a weight search tries next: random points, a Gaussian process's proposals, steps along single coordinates."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yt8m_assets.errors import ConfigError

_ACQUISITION_POINTS = 3000
"""Points among which the model looks for the next trial."""
STEPS = (2.0, 1.4, 1.15)
"""Factors of a climb, coarse to fine."""
REVIVED = (0.5, 0.1, 0.02)
"""Parts of the largest weight that a weight at 0 is tried at."""
_SPREAD = 0.1
"""Standard deviation of a perturbed point's logarithms."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A point of the search: the place constant and weights that sum to 1, in the order of the rankings."""

    w0: float
    """Place constant, above 0."""
    weights: tuple[float, ...]
    """One weight per ranking."""
    phase: str
    """What proposed it."""

    def params(self, keys: Sequence[str]) -> dict[str, float]:
        """As a trial's parameters."""
        return {"w0": self.w0, **dict(zip(keys, self.weights, strict=True))}


def candidate(w0: float, weights: Sequence[float], phase: str) -> Candidate:
    """A candidate with its weights brought to sum 1. Raises ConfigError when that cannot be."""
    total = float(sum(weights))
    if not total > 0 or min(weights) < 0:
        raise ConfigError(f"search: weights {list(weights)} of {phase}: must not be negative, and not all zero")
    return Candidate(w0=float(w0), weights=tuple(float(weight) / total for weight in weights), phase=phase)


def preset_candidate(name: str, keys: Sequence[str], w0: float, weights: Mapping[str, float]) -> Candidate:
    """A preset for the given rankings. Raises ConfigError naming a ranking that it has no weight for."""
    lacking = [key for key in keys if key not in weights]
    if lacking:
        raise ConfigError(f"search: preset {name!r} has no weight for {', '.join(lacking)}")
    return candidate(w0, [weights[key] for key in keys], "preset")


def random_candidate(generator: np.random.Generator, num_weights: int, w0_bounds: tuple[float, float]) -> Candidate:
    """Weights uniform over the simplex, w0 uniform on a logarithmic scale."""
    low, high = np.log(w0_bounds)
    w0 = float(np.exp(generator.uniform(low, high)))
    return candidate(w0, generator.dirichlet(np.ones(num_weights)).tolist(), "random")


def model_candidate(
    params: Sequence[Mapping[str, float]],
    targets: Sequence[float],
    keys: Sequence[str],
    w0_bounds: tuple[float, float],
    seed: int,
) -> Candidate:
    """The point of highest expected improvement under a Gaussian process of the trials so far (scikit-optimize).

    A function of its arguments: nothing is carried from one proposal to the next but the trials.
    """
    from skopt import Optimizer
    from skopt.learning import GaussianProcessRegressor
    from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern

    # One length scale: ten of them, fitted to a few dozen trials, follow the noise and take most of the time.
    kernel = ConstantKernel(1.0, (0.01, 1000.0)) * Matern(1.0, (0.05, 20.0), nu=2.5)
    process = GaussianProcessRegressor(kernel=kernel, noise="gaussian", normalize_y=True, random_state=seed)
    dimensions: list[Any] = [(0.0, 1.0)] * (len(keys) + 1)
    optimizer = Optimizer(
        dimensions,
        base_estimator=process,
        n_initial_points=1,
        acq_func="EI",
        acq_optimizer="sampling",
        acq_optimizer_kwargs={"n_points": _ACQUISITION_POINTS},
        random_state=seed,
    )
    with warnings.catch_warnings():
        # The fit may stop at a bound of a length scale, and a proposal may repeat a trial: neither is a fault.
        warnings.simplefilter("ignore")
        optimizer.tell([encode(row, keys, w0_bounds) for row in params], [-target for target in targets])
        point = [float(value) for value in optimizer.ask()]
    low, high = np.log(w0_bounds)
    weights = point[1:] if sum(point[1:]) > 0 else [1.0] * len(keys)
    return candidate(float(np.exp(low + point[0] * (high - low))), weights, "model")


def encode(params: Mapping[str, float], keys: Sequence[str], w0_bounds: tuple[float, float]) -> list[float]:
    """A trial as a point of the unit cube: log w0, then the weights over the largest of them."""
    low, high = np.log(w0_bounds)
    place = float(np.clip((np.log(params["w0"]) - low) / (high - low), 0.0, 1.0))
    largest = max(params[key] for key in keys)
    return [place, *(params[key] / largest for key in keys)]


def perturbed_candidate(generator: np.random.Generator, point: Candidate, w0_bounds: tuple[float, float]) -> Candidate:
    """A point near another, every number a little different; a weight at 0 may come back."""
    weights = np.array(point.weights)
    weights = np.where(weights == 0, weights.max() * generator.choice((0.0, *REVIVED), weights.size), weights)
    factors = np.exp(_SPREAD * generator.normal(size=weights.size + 1))
    w0 = float(np.clip(point.w0 * factors[0], *w0_bounds))
    return candidate(w0, (weights * factors[1:]).tolist(), "refinement")


def climb(
    evaluate: Callable[[Candidate], float],
    start: Candidate,
    value: float,
    w0_bounds: tuple[float, float],
    budget: int,
    steps: Sequence[float] = STEPS,
) -> tuple[Candidate, float]:
    """Climb from `start` (worth `value`) by changing one number at a time; stops at `budget` evaluations.

    w0 and every weight are multiplied and divided by each step's factor in turn; a weight is set to 0, and one at 0 to
    a part of the largest. What improves is kept at once. Returns the best point and its value.
    """
    best, left = start, budget
    for step in steps:
        improved = True
        while improved and left > 0:
            improved = False
            for number in range(1 + len(start.weights)):
                for changed in _moves(best, number, step, w0_bounds):
                    if left <= 0:
                        break
                    left -= 1
                    result = evaluate(changed)
                    if result > value:
                        best, value, improved = changed, result, True
                        break
    return best, value


def _moves(point: Candidate, number: int, step: float, w0_bounds: tuple[float, float]) -> Iterator[Candidate]:
    """The points with one number changed that are allowed: w0 (number 0), or a weight."""
    if number == 0:
        w0s = (point.w0 * step, point.w0 / step)
        yield from (candidate(w0, point.weights, "refinement") for w0 in w0s if w0_bounds[0] <= w0 <= w0_bounds[1])
        return
    weight = point.weights[number - 1]
    others = sum(point.weights) - weight
    values = (weight * step, weight / step, 0.0) if weight else [max(point.weights) * part for part in REVIVED]
    for changed in values:
        if others > 0:  # the weight of a single ranking means nothing
            weights = (*point.weights[: number - 1], changed, *point.weights[number:])
            yield candidate(point.w0, weights, "refinement")
