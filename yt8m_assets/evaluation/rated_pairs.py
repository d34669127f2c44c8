"""MAP of scores of the rated pairs alone, and on halves of the videos. Shapes: S segments, R rated classes, P pairs."""

from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.average_precision import grouped_average_precision
from yt8m_assets.evaluation.picking import HALF

NUM_DIVISIONS = 8
"""Divisions of the hold-out's videos into halves, for an estimate of what picking by these scores flatters them by."""


@dataclass(frozen=True, kw_only=True)
class RatedPairs:
    """The rated pairs of a table of segments, by segment."""

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

    @classmethod
    def of(cls, table: SegmentTable) -> "RatedPairs":
        """The ratings of all segments of a table. Raises DataError where no rating is positive."""
        ratings, video_ids = table.ratings, np.array(table.video_ids)
        if not (ratings.scores > 0).any():
            raise DataError("the hold-out has no positively rated segment; check data.holdout")
        order = np.argsort(table.rating_segments, kind="stable")
        class_ids, columns = np.unique(ratings.class_ids[order], return_inverse=True)
        tie_order = np.empty(len(table), np.int64)
        tie_order[np.lexsort((table.starts, video_ids))] = np.arange(len(table))
        return cls(
            rows=table.rating_segments[order],
            columns=columns.reshape(-1),
            positive=ratings.scores[order] > 0,
            class_ids=class_ids,
            tie_order=tie_order,
            in_first_half=_divisions(video_ids)[:, table.rating_segments[order]],
        )

    def map(self, scores: np.ndarray) -> float:
        """MAP over the classes with a positive rating (SPEC section 9); scores float [P]."""
        return self._map_in_order(self._best_first(scores))

    def half_scores(self, scores: np.ndarray) -> dict[str, float]:
        """MAP on either half of the videos (`half_0a`, `half_0b`, ...) for divisions that leave both a positive."""
        order = self._best_first(scores)
        found: dict[str, float] = {}
        for number, first in enumerate(self.in_first_half):
            if (self.positive & first).any() and (self.positive & ~first).any():
                for side, chosen in (("a", first), ("b", ~first)):
                    found[f"{HALF}{number}{side}"] = self._map_in_order(order[chosen[order]])
        return found

    def _best_first(self, scores: np.ndarray) -> np.ndarray:
        return np.lexsort((self.tie_order[self.rows], -scores, self.columns))

    def _map_in_order(self, order: np.ndarray) -> float:
        """MAP of the pairs of `order`, best first within each class."""
        columns, positive = self.columns[order], self.positive[order]
        totals = np.bincount(columns, weights=positive, minlength=len(self.class_ids))
        return float(grouped_average_precision(columns, positive, totals)[totals > 0].mean())


def _divisions(video_ids: np.ndarray) -> np.ndarray:
    """For each division and segment whether its video is in the first half, bool [D, S]; the same videos, the same."""
    videos, video = np.unique(video_ids, return_inverse=True)
    places = [np.random.default_rng(number).permutation(videos.size) for number in range(NUM_DIVISIONS)]
    return (np.stack(places) < videos.size // 2)[:, video]
