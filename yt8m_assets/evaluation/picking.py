"""By how much picking the best of several checkpoints flatters its score: a split-half estimate.

A score that decided which weights are published is no longer an unbiased one: the best of many noisy numbers is too
high. With the scores on two halves of the videos the size of that can be seen: pick by one half, and compare with what
the other half would have picked. The halves' own difficulty cancels out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HALF = "half_"
"""Beginning of the names of scores on halves: `half_0a` and `half_0b` are those of the first division."""


@dataclass(frozen=True, kw_only=True)
class PickingOptimism:
    """What picking did."""

    num_candidates: int
    """Checkpoints and averages of which the best was picked."""
    optimism: float | None
    """By how much picking on half of the videos flatters the score there; None where no halves were scored."""
    num_divisions: int
    """Divisions into halves that it is the mean of."""


def picking_optimism(candidates: Sequence[Mapping[str, float]]) -> PickingOptimism:
    """The optimism of picking among candidates, each given by its scores.

    For a division into halves A and B, whose best candidates are a and b: ((A[a] - A[b]) + (B[b] - B[a])) / 2, never
    below 0. The whole hold-out has twice the videos, and less noise to pick by: there it is smaller.
    """
    names = sorted({name[:-1] for row in candidates for name in row if name.startswith(HALF)})
    found = []
    for name in names:
        if all(f"{name}{side}" in row for row in candidates for side in "ab"):
            first, second = (np.array([row[f"{name}{side}"] for row in candidates]) for side in "ab")
            by_first, by_second = int(np.argmax(first)), int(np.argmax(second))
            gaps = first[by_first] - first[by_second] + second[by_second] - second[by_first]
            found.append(gaps / 2)
    optimism = float(np.mean(found)) if found else None
    return PickingOptimism(num_candidates=len(candidates), optimism=optimism, num_divisions=len(found))


def whole_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores without those on halves."""
    return {name: value for name, value in scores.items() if not name.startswith(HALF)}
