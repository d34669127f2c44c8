"""Hold-out segment MAP beside training, without touching the training's state.

Only rated segments are scored, at shift 0, and of the head only the rated classes: the MAP is that of the full ranking
wherever the cut at 100,000 drops no rated segment. Shapes: S segments, R rated classes, P rated pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from yt8m_assets.data.batches import Batch
from yt8m_assets.data.features import model_inputs
from yt8m_assets.errors import DataError, NonFiniteError
from yt8m_assets.evaluation.average_precision import grouped_average_precision
from yt8m_assets.training.pacing import EvaluationLimit
from yt8m_assets.training.randomness import isolated_randomness


@dataclass(frozen=True, kw_only=True)
class HoldoutPairs:
    """The rated pairs of the hold-out, in the order in which `batches` brings their segments."""

    rows: np.ndarray
    """int64 [P]: segment number."""
    columns: np.ndarray
    """int64 [P]: place of the class among the rated ones."""
    positive: np.ndarray
    """bool [P]: the rating."""
    class_ids: np.ndarray
    """int64 [R]: the rated classes, sorted."""
    tie_order: np.ndarray
    """int64 [S]: rank of each segment by video id and start; equal scores are ranked by it, as in a ranking."""


def collect_pairs(batches: Iterator[Batch]) -> HoldoutPairs:
    """Read the ratings of one pass over the hold-out. Raises DataError where nothing is rated."""
    rows: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    positive: list[np.ndarray] = []
    names: list[str] = []
    starts: list[int] = []
    for batch in batches:
        if batch.label_weights is None:
            raise DataError("the hold-out has video labels, not segment ratings; give the segment shards")
        found_rows, found_classes = np.nonzero(batch.label_weights.numpy())
        rows.append(found_rows + len(names))
        classes.append(found_classes)
        positive.append(batch.labels.numpy()[found_rows, found_classes] > 0.5)
        names += batch.video_ids
        starts += batch.starts.tolist()
    if not names or not any(part.any() for part in positive):
        raise DataError("the hold-out has no positively rated segment; check data.holdout")
    class_ids, columns = np.unique(np.concatenate(classes), return_inverse=True)
    tie_order = np.empty(len(names), np.int64)
    tie_order[np.lexsort((np.array(starts), np.array(names)))] = np.arange(len(names))
    return HoldoutPairs(
        rows=np.concatenate(rows),
        columns=columns.reshape(-1),
        positive=np.concatenate(positive),
        class_ids=class_ids,
        tie_order=tie_order,
    )


def mean_average_precision(pairs: HoldoutPairs, scores: np.ndarray) -> float:
    """MAP over the classes with a positive rating (SPEC section 9); scores float [P]."""
    order = np.lexsort((pairs.tie_order[pairs.rows], -scores, pairs.columns))
    totals = np.bincount(pairs.columns, weights=pairs.positive, minlength=len(pairs.class_ids))
    precision = grouped_average_precision(pairs.columns[order], pairs.positive[order], totals)
    return float(precision[totals > 0].mean())


class HoldoutEvaluation:
    """Scores a model on the hold-out; call it with the model.

    `batches` makes one pass over the rated segments, the same order each time.
    """

    def __init__(
        self, batches: Callable[[], Iterator[Batch]], device: torch.device, precision: str = "float32"
    ) -> None:
        self.batches, self.device, self.precision = batches, device, precision
        self.pairs = collect_pairs(batches())

    @property
    def num_segments(self) -> int:
        """Segments that one evaluation scores."""
        return len(self.pairs.tie_order)

    def __call__(self, model: nn.Module, limit: EvaluationLimit | None = None) -> float:
        """MAP of the model's present weights, over the whole hold-out.

        Weights, batch-norm statistics, mode and random generators are afterwards what they were. Raises NonFiniteError
        naming a segment without a finite score, EvaluationEnded when `limit` ends the evaluation between two batches.
        """
        training = model.training
        try:
            with isolated_randomness(self.device, 0):
                scores = self.scores(model, limit)
        finally:
            model.train(training)
        return mean_average_precision(self.pairs, scores)

    @torch.no_grad()
    def scores(self, model: nn.Module, limit: EvaluationLimit | None = None) -> np.ndarray:
        """Probabilities of the rated pairs, float32 [P]."""
        restricted = model.restrict_classes(torch.from_numpy(self.pairs.class_ids))  # type: ignore[operator]
        found = []
        num_segments = 0
        for batch in self.batches():
            if limit is not None:
                limit.check()
            part = batch.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                output = restricted(model_inputs(part.frames, part.valid), part.num_frames)
            chosen = (self.pairs.rows >= num_segments) & (self.pairs.rows < num_segments + len(batch))
            probabilities = output.probabilities.float().cpu().numpy()
            found.append(probabilities[self.pairs.rows[chosen] - num_segments, self.pairs.columns[chosen]])
            num_segments += len(batch)
            if not np.isfinite(found[-1]).all():
                raise NonFiniteError(
                    f"the model's hold-out scores are not finite, among the videos {', '.join(batch.video_ids[:5])} ..."
                )
        return np.concatenate(found)
