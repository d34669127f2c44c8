"""The ratings of segments: who was rated, for which class, and what the raters said."""

from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.dataset.ahead import walk
from yt8m_assets.data.dataset.datasets import check_classes
from yt8m_assets.data.dataset.videos import Videos
from yt8m_assets.errors import VocabularyError


@dataclass(frozen=True, eq=False)
class SegmentRatings:
    """R rated (segment, class) pairs, in the order of the records; each pair once."""

    video_ids: list[str]
    """Id of each rating's video."""
    starts: np.ndarray
    """int64 [R]: first second of the segment."""
    class_ids: np.ndarray
    """int32 [R]: the class that was rated."""
    scores: np.ndarray
    """float32 [R]: 1 where raters saw the class, else 0."""
    num_repeated: int = 0
    """Pairs that were rated again; the last rating counts."""

    def __len__(self) -> int:
        return len(self.video_ids)

    @property
    def segment_ids(self) -> list[str]:
        """`video_id:start` of each rating."""
        return [f"{name}:{start}" for name, start in zip(self.video_ids, self.starts.tolist(), strict=True)]


def collect_ratings(
    videos: Videos, num_classes: int | None = None, segment_classes: np.ndarray | None = None
) -> tuple[np.ndarray, SegmentRatings]:
    """All ratings of some videos, and the number of each rating's video (int64 [R]).

    Raises VocabularyError when a rated class lies outside the vocabulary, or outside `segment_classes` where given.
    """
    allowed = None if segment_classes is None else set(segment_classes.tolist())
    numbers: list[int] = []
    rows: dict[tuple[int, int, int], float] = {}
    repeated = 0
    for number in walk(videos):
        segments = videos.annotations(number)[1]
        if segments is None or not len(segments):
            continue
        if num_classes is not None:
            check_classes(segments.class_ids, num_classes, videos.where(number), "segment_labels")
        for start, class_id, score in zip(
            segments.start_times.tolist(), segments.class_ids.tolist(), segments.scores.tolist(), strict=True
        ):
            if allowed is not None and class_id not in allowed:
                raise VocabularyError(
                    f"{videos.where(number)}: segment_labels: class {class_id} is not a rated class; the recipe's "
                    '"unlisted_ratings": "drop" leaves such ratings out'
                )
            repeated += (number, start, class_id) in rows
            rows[number, start, class_id] = score
    numbers = [number for number, _, _ in rows]
    ratings = SegmentRatings(
        video_ids=[videos.video_ids[number] for number in numbers],
        starts=np.array([start for _, start, _ in rows], np.int64),
        class_ids=np.array([class_id for _, _, class_id in rows], np.int32),
        scores=np.array(list(rows.values()), np.float32),
        num_repeated=repeated,
    )
    return np.array(numbers, np.int64), ratings
