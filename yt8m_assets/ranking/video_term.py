"""A video's own evidence for a class beside that of its segments: `v^a * s^(1 - a)`.

s is a segment's score, v the mean of the class's scores over all segments of the video, of one model at one shift, and
a the video's weight. What a segment shows is weighed by what the video as a whole shows: a class that a model sees
everywhere in a video is likelier in each of its segments, one that it sees once by chance is not. With a = 0 nothing
changes; what is zero stays zero. (Others compose so with the scores of a video-level model; here v is the segment
model's own.)
"""

import numpy as np

from yt8m_assets.errors import ConfigError
from yt8m_assets.ranking.demotion import video_means
from yt8m_assets.ranking.files import RankingSource


def compose(scores: np.ndarray, begins: np.ndarray, weight: float) -> np.ndarray:
    """Scores float32 [S, R] of whole videos with the video's own evidence; the same array where its weight is 0.

    Arguments: `begins` int [V], each video's first row. Raises ConfigError for a weight outside [0, 1).
    """
    if not 0 <= weight < 1:
        raise ConfigError(f"video_weight = {weight}: must lie in [0, 1)")
    if not weight:
        return scores
    counts = np.diff(begins, append=len(scores))
    means = np.add.reduceat(scores, begins, axis=0, dtype=np.float64) / counts[:, None]
    return _composed(scores, np.repeat(means, counts, axis=0), weight)


def _composed(scores: np.ndarray, means: np.ndarray, weight: float) -> np.ndarray:
    return (means**weight * scores.astype(np.float64) ** (1 - weight)).astype(np.float32)


class ComposedRanking:
    """A ranking with the video's evidence, computed class by class as it is asked for (a `RankingSource`).

    What a pass with this weight would have ranked, from one without it: exact where the lists are whole; where they
    were cut, what lay behind the cut cannot come forward. Raises DataError for a ranking that was made with demotions.
    """

    def __init__(self, ranking: RankingSource, weight: float) -> None:
        self._ranking, self._weight, self._means = ranking, weight, video_means(ranking)
        self.class_ids, self.segments = ranking.class_ids, ranking.segments

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and scores float32 [n] of a class, best first; equals go by segment."""
        segment, score = self._ranking.entries(class_id)
        means = self._means[:, int(np.searchsorted(self.class_ids, class_id))]
        found = _composed(score, means[self.segments.video[segment]], self._weight)
        order = np.lexsort((segment, -found))
        return segment.take(order), found.take(order)
