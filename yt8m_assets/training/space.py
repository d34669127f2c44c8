"""The space of a study of settings, and what a study tries next in it.

A proposal is a function of the space, the seed and the trials so far, and nothing is carried from one to the next but
these: a study that was killed goes on with the same trials.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yt8m_assets.errors import ConfigError

Point = dict[str, Any]
"""Name of a setting -> its value."""
_ACQUISITION_POINTS = 2000
"""Points among which the model looks for the next trial."""
_DRAWS = 200
"""Random points that are drawn for one that has not been tried."""
_LOGARITHMIC = 10
"""High over low, from which a range above zero is searched on a logarithmic scale."""
_LARGEST: Mapping[type, float] = {float: 1e300, int: 2**62, bool: 1}
"""Size of a number in a space, at most: what a table's columns hold."""


@dataclass(frozen=True)
class Range:
    """Numbers between two, both included; whole ones where both are whole."""

    low: float
    high: float

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def logarithmic(self) -> bool:
        """Whether a factor means more than a difference."""
        return self.low > 0 and self.high / self.low >= _LOGARITHMIC

    def at(self, share: float) -> float:
        """The number at a share of the way, on its scale."""
        if self.logarithmic:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return self.nearest(value)

    def nearest(self, value: float) -> float:
        """A number of the range near one: whole, or of four digits, of more where the range is narrow."""
        if self.whole:
            return min(max(round(value), self.low), self.high)
        digits = 3 + math.ceil(math.log10(max(abs(self.low), abs(self.high)) / (self.high - self.low)))
        return min(max(float(f"{value:.{max(digits, 4)}g}"), self.low), self.high)

    def dimension(self) -> Any:
        """As scikit-optimize has it."""
        from skopt.space import Integer, Real

        kind: Any = Integer if self.whole else Real
        return kind(self.low, self.high, prior="log-uniform" if self.logarithmic else "uniform")


Choices = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched, and what is the same in every trial."""

    searched: Mapping[str, Range | Choices]
    """Name of a setting -> its range, or its choices."""
    fixed: Point
    """Name -> value."""

    def propose(self, past: Sequence[tuple[Point, float]], seed: int, num_initial: int) -> Point | None:
        """The next point to try, after some with their scores (higher is better); None where all has been tried.

        The first `num_initial` are random; then it is the one of highest expected improvement under a Gaussian process.
        """
        tried = [point for point, _ in past]
        if len(past) >= num_initial:
            found = self._model_point(past, derived_seed(seed, len(past)))
            if found not in tried:
                return found
        generator = np.random.default_rng([seed, len(past)])
        drawn = ({**self.fixed, **self._random(generator)} for _ in range(_DRAWS))
        return next((point for point in drawn if point not in tried), None)

    def ends(self) -> Iterator[Point]:
        """Each end of every range, and each choice, alone: where a setting is wrong, one of these is."""
        for name, each in self.searched.items():
            for value in (each.low, each.high) if isinstance(each, Range) else each:
                yield {name: value}

    def _random(self, generator: np.random.Generator) -> Point:
        shares = {name: float(generator.random()) for name in self.searched}
        return {
            name: each.at(shares[name]) if isinstance(each, Range) else each[int(shares[name] * len(each))]
            for name, each in self.searched.items()
        }

    def _model_point(self, past: Sequence[tuple[Point, float]], seed: int) -> Point:
        from skopt import Optimizer
        from skopt.space import Categorical

        kinds = self.searched.values()
        dimensions = [each.dimension() if isinstance(each, Range) else Categorical(range(len(each))) for each in kinds]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that stops at a bound, a repeated point: no faults
            optimizer = Optimizer(
                dimensions,
                base_estimator="GP",
                n_initial_points=1,
                acq_func="EI",
                acq_optimizer="sampling",
                acq_optimizer_kwargs={"n_points": _ACQUISITION_POINTS},
                random_state=seed,
            )
            optimizer.tell([self._encoded(point) for point, _ in past], [-score for _, score in past])
            values = [np.asarray(value).item() for value in optimizer.ask()]
        found = dict(self.fixed)
        for (name, each), value in zip(self.searched.items(), values, strict=True):
            found[name] = each.nearest(value) if isinstance(each, Range) else each[int(value)]
        return found

    def _encoded(self, point: Point) -> list[Any]:
        return [
            point[name] if isinstance(each, Range) else each.index(point[name]) for name, each in self.searched.items()
        ]


def derived_seed(seed: int, number: int) -> int:
    """The seed of one proposal of a study."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def read_space(values: Mapping[str, Any]) -> Space:
    """The space that a form or a command line describes: a list for each setting.

    Two numbers are a range (whole numbers: of whole numbers), one value is fixed, any other list are choices. Raises
    ConfigError naming the setting.
    """
    searched: dict[str, Range | Choices] = {}
    fixed: Point = {}
    for name, given in values.items():
        if not isinstance(given, list | tuple) or not given:
            raise ConfigError(f"space: {name} = {given!r}: give a list: two numbers, one value, or choices")
        if not all(abs(each) <= _LARGEST[type(each)] for each in given if isinstance(each, int | float)):
            raise ConfigError(
                f"space: {name} = {list(given)}: numbers must be finite, and no larger than a table holds"
            )
        if len(given) == 1:
            fixed[name] = given[0]
        elif len(given) == 2 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in given):
            low, high = given
            if low >= high:
                raise ConfigError(f"space: {name} = {list(given)}: a range goes from the lower to the higher number")
            searched[name] = Range(low, high) if Range(low, high).whole else Range(float(low), float(high))
        else:
            if any(given.index(each) != place for place, each in enumerate(given)):
                raise ConfigError(f"space: {name} = {list(given)}: the same choice twice")
            searched[name] = tuple(given)
    if not searched:
        raise ConfigError("space: nothing is searched; give a range or choices for a setting")
    return Space(searched=searched, fixed=fixed)
