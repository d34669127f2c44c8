"""Segments that are ranked last though they score: a video's edges, and classes that the video as a whole lacks.

Nothing is dropped: a whole number is taken off the score, more than any probability, so that what is demoted keeps its
own order behind the rest. An edge costs 1, a class outside the video's candidates 2: of a class, first come the
candidates, then their edges, then what is no candidate, then its edges. Behind the candidates, scores closer than
float32 can tell apart down there (2.4e-7) count as equal and go by segment.

A video's candidates are the classes with the highest mean score over all its segments, of one model at one shift. So a
cell depends on itself alone, whatever else the pass computes, and a block of whole videos is all it takes.
"""

import numpy as np

from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.ranking.files import RankingSource
from yt8m_assets.ranking.segments import Segments

EDGE = np.float32(1.0)
"""What a segment at a video's edge is demoted by."""
OUTSIDE = np.float32(2.0)
"""What a class outside the candidates is demoted by."""


def demote(scores: np.ndarray, edge: np.ndarray, begins: np.ndarray, num_candidates: int | None) -> np.ndarray:
    """Scores float32 [S, R] of whole videos with the demotions taken off; the same array where there are none.

    Arguments: `edge` bool [S]; `begins` int [V], each video's first row; `num_candidates`, or None: every class is one.
    """
    demoted = scores
    if edge.any():
        demoted = demoted - edge[:, None] * EDGE
    if num_candidates is not None and num_candidates < scores.shape[1]:
        counts = np.diff(begins, append=len(scores))
        means = np.add.reduceat(scores, begins, axis=0, dtype=np.float64) / counts[:, None]
        candidate = candidate_mask(best_classes(means, num_candidates), scores.shape[1])
        demoted = demoted - np.repeat(~candidate, counts, axis=0) * OUTSIDE
    return demoted


def best_classes(video_scores: np.ndarray, k: int) -> np.ndarray:
    """The K best columns of each video's scores [V, R], best first, int64 [V, min(k, R)]; ties: the earlier column."""
    if k < 1:
        raise ConfigError(f"candidate_classes = {k}: must be at least 1")
    return np.argsort(-video_scores, axis=1, kind="stable")[:, :k]


def candidate_mask(best: np.ndarray, num_classes: int) -> np.ndarray:
    """bool [V, R]: whether a class is among a video's best columns int [V, K]."""
    mask = np.zeros((len(best), num_classes), bool)
    np.put_along_axis(mask, best, True, axis=1)
    return mask


def video_means(ranking: RankingSource) -> np.ndarray:
    """Mean score of each video's segments in each class, float64 [V, C], from a cell's ranking without demotions.

    A segment that was cut from a list counts with the list's lowest score, the most it can have had: exact where the
    lists are whole. Raises DataError where a score is below zero: the ranking was made with demotions.
    """
    segments = ranking.segments
    sizes = np.bincount(segments.video, minlength=segments.video_ids.size)
    means = np.zeros((sizes.size, ranking.class_ids.size))
    for column, class_id in enumerate(ranking.class_ids.tolist()):
        segment, score = ranking.entries(class_id)
        if not segment.size:
            continue
        if score[-1] < 0:
            raise DataError(f"class {class_id}: a score is {score[-1]}: the ranking was made with demotions")
        video = segments.video[segment]
        sums = np.bincount(video, weights=score, minlength=sizes.size)
        absent = sizes - np.bincount(video, minlength=sizes.size)
        means[:, column] = (sums + absent * float(score[-1])) / sizes
    return means


def edge_mask(segments: Segments, trim_start: int, trim_end: int) -> np.ndarray:
    """bool [S]: whether a segment is among its video's first `trim_start` or last `trim_end`."""
    sizes = np.bincount(segments.video, minlength=segments.video_ids.size)
    place = np.arange(len(segments)) - (np.cumsum(sizes) - sizes)[segments.video]
    return (place < trim_start) | (place >= sizes[segments.video] - trim_end)


class DemotedRanking:
    """A ranking with demotions, computed class by class as it is asked for (a `RankingSource`).

    What a pass with these settings would have ranked, from one without them: exact where the lists are whole; where
    they were cut, what lay behind the cut cannot come forward. Arguments: `edge` bool [S]; `candidate` bool [V, C] over
    the ranking's videos and classes, or None: every class is one.
    """

    def __init__(self, ranking: RankingSource, edge: np.ndarray, candidate: np.ndarray | None = None) -> None:
        self._ranking, self._edge, self._candidate = ranking, edge * np.uint8(EDGE), candidate
        self.class_ids, self.segments = ranking.class_ids, ranking.segments

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and scores float32 [n] of a class, best first."""
        segment, score = self._ranking.entries(class_id)
        demotion = self._demotion(class_id).take(segment)
        order = np.argsort(demotion, kind="stable")  # by radix: whole numbers of one byte
        return segment.take(order), (score - demotion).take(order)

    def _demotion(self, class_id: int) -> np.ndarray:
        """What every segment is demoted by in a class, uint8 [S]."""
        if self._candidate is None:
            return self._edge
        outside = ~self._candidate[:, int(np.searchsorted(self.class_ids, class_id))] * np.uint8(OUTSIDE)
        return self._edge + outside.take(self.segments.video)
