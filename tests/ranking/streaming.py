"""Scores of some videos as a pass over them gives them: a block a video, in the order of the mapping."""

from collections.abc import Mapping, Sequence

import numpy as np

from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.topk import StreamingTopK


def table_of(starts: Mapping[str, Sequence[int]]) -> tuple[Segments, list[np.ndarray]]:
    """The canonical table of {video: start seconds}, and the rows of each video's segments in it."""
    sizes = [len(values) for values in starts.values()]
    flat = np.array([start for values in starts.values() for start in values], np.int32)
    segments, rows = Segments.sorted(list(starts), np.repeat(np.arange(len(sizes)), sizes), flat)
    return segments, np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []


def streamed(scores: Mapping[str, np.ndarray], k: int, class_ids: np.ndarray) -> StreamingTopK:
    """A top-k that has taken in {video: float32 [segments, classes]}, segments 5 seconds apart."""
    segments, rows = table_of({name: range(0, len(block) * 5, 5) for name, block in scores.items()})
    best = StreamingTopK(class_ids, k, segments)
    for block, own in zip(scores.values(), rows, strict=True):
        best.update(block, own)
    return best
