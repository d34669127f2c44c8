"""Hold-out segment MAP beside training, without touching the training's state.

Only rated segments are scored, at shift 0, and of the head only the rated classes: the MAP is that of the full ranking
wherever the cut at 100,000 drops no rated segment. Shapes: S segments, R rated classes, P rated pairs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.records.features import model_inputs
from yt8m_assets.errors import DataError, NonFiniteError
from yt8m_assets.evaluation.average_precision import grouped_average_precision
from yt8m_assets.evaluation.picking import HALF
from yt8m_assets.training.interruption import EvaluationInterrupted, StopRequest
from yt8m_assets.training.randomness import isolated_randomness

BATCH_SIZE = 512
"""Segments that are scored together."""
NUM_DIVISIONS = 8
"""Divisions of the hold-out's videos into halves, for an estimate of what picking by these scores flatters them by."""


class Evaluation(Protocol):
    """What a training calls to score a model on held-out data.

    Weights, batch-norm statistics, mode and random generators are afterwards what they were. Raises NonFiniteError
    naming videos without finite scores, EvaluationInterrupted between two batches when a stop is asked for.
    """

    headline: str
    """The score by which weights are compared."""
    scores_start: bool
    """Whether the weights that training starts from are worth scoring."""

    def __call__(self, model: nn.Module, stop: StopRequest | None = None) -> dict[str, float]: ...


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a model's mode and torch's generators back after the block, and compute no gradients in it."""
    training = model.training
    try:
        with isolated_randomness(device, 0), torch.no_grad():
            yield
    finally:
        model.train(training)


@dataclass(frozen=True, kw_only=True)
class HoldoutPairs:
    """The rated pairs of the hold-out, by segment."""

    rows: np.ndarray
    """int64 [P]: segment number, ascending."""
    columns: np.ndarray
    """int64 [P]: place of the class among the rated ones."""
    positive: np.ndarray
    """bool [P]: the rating."""
    class_ids: np.ndarray
    """int64 [R]: the rated classes, sorted."""
    tie_order: np.ndarray
    """int64 [S]: rank of each segment by video id and start; equal scores are ranked by it, as in a ranking."""
    in_first_half: np.ndarray
    """bool [D, P]: on which side of each division its video is."""


def rated_pairs(table: SegmentTable) -> HoldoutPairs:
    """The ratings of all segments of a table, by segment. Raises DataError where no rating is positive."""
    ratings = table.ratings
    if not (ratings.scores > 0).any():
        raise DataError("the hold-out has no positively rated segment; check data.holdout")
    order = np.argsort(table.rating_segments, kind="stable")
    class_ids, columns = np.unique(ratings.class_ids[order], return_inverse=True)
    tie_order = np.empty(len(table), np.int64)
    tie_order[np.lexsort((table.starts, np.array(table.video_ids)))] = np.arange(len(table))
    return HoldoutPairs(
        rows=table.rating_segments[order],
        columns=columns.reshape(-1),
        positive=ratings.scores[order] > 0,
        class_ids=class_ids,
        tie_order=tie_order,
        in_first_half=_divisions(np.array(table.video_ids))[:, table.rating_segments[order]],
    )


def _divisions(video_ids: np.ndarray) -> np.ndarray:
    """For each division and segment whether its video is in the first half, bool [D, S]; the same videos, the same."""
    videos, video = np.unique(video_ids, return_inverse=True)
    places = [np.random.default_rng(number).permutation(videos.size) for number in range(NUM_DIVISIONS)]
    return (np.stack(places) < videos.size // 2)[:, video]


def mean_average_precision(pairs: HoldoutPairs, scores: np.ndarray) -> float:
    """MAP over the classes with a positive rating (SPEC section 9); scores float [P]."""
    return _map_in_order(pairs, _best_first(pairs, scores))


def half_scores(pairs: HoldoutPairs, scores: np.ndarray) -> dict[str, float]:
    """MAP on either half of the videos, for every division that leaves both a positive: `half_0a`, `half_0b`, ..."""
    order = _best_first(pairs, scores)
    found: dict[str, float] = {}
    for number, first in enumerate(pairs.in_first_half):
        if (pairs.positive & first).any() and (pairs.positive & ~first).any():
            for side, chosen in (("a", first), ("b", ~first)):
                found[f"{HALF}{number}{side}"] = _map_in_order(pairs, order[chosen[order]])
    return found


def _best_first(pairs: HoldoutPairs, scores: np.ndarray) -> np.ndarray:
    return np.lexsort((pairs.tie_order[pairs.rows], -scores, pairs.columns))


def _map_in_order(pairs: HoldoutPairs, order: np.ndarray) -> float:
    """MAP of the pairs of `order`, best first within each class."""
    columns, positive = pairs.columns[order], pairs.positive[order]
    totals = np.bincount(columns, weights=positive, minlength=len(pairs.class_ids))
    return float(grouped_average_precision(columns, positive, totals)[totals > 0].mean())


class HoldoutEvaluation:
    """Scores a model on the rated segments of a table."""

    headline = "map"
    scores_start = True

    def __init__(self, table: SegmentTable, device: torch.device, precision: str = "float32") -> None:
        self.table, self.device, self.precision = table, device, precision
        self.pairs = rated_pairs(table)

    def __call__(self, model: nn.Module, stop: StopRequest | None = None) -> dict[str, float]:
        """`map` of the model's present weights on the hold-out, and on halves of it; raises what `Evaluation` says."""
        with undisturbed(model, self.device):
            scores = self.scores(model, stop)
        return {"map": mean_average_precision(self.pairs, scores), **half_scores(self.pairs, scores)}

    @torch.no_grad()
    def scores(self, model: nn.Module, stop: StopRequest | None = None) -> np.ndarray:
        """Probabilities of the rated pairs, float32 [P]."""
        pairs = self.pairs
        restricted = model.restrict_classes(torch.from_numpy(pairs.class_ids))  # type: ignore[operator]
        found = []
        for first in range(0, len(self.table), BATCH_SIZE):
            if stop is not None and stop.requested:
                raise EvaluationInterrupted
            segments = np.arange(first, min(first + BATCH_SIZE, len(self.table)))
            frames, valid, num_frames = (part.to(self.device) for part in self.table.inputs(segments))
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                output = restricted(model_inputs(frames, valid), num_frames)
            begin, end = np.searchsorted(pairs.rows, [first, first + len(segments)])
            probabilities = output.probabilities.float().cpu().numpy()
            found.append(probabilities[pairs.rows[begin:end] - first, pairs.columns[begin:end]])
            if not np.isfinite(found[-1]).all():
                names = ", ".join(self.table.video_ids[first : first + 5])
                raise NonFiniteError(f"the model's hold-out scores are not finite, among the videos {names} ...")
        return np.concatenate(found)
