"""The table of segments that rankings, ratings and scores index.

A segment is a video and a start second; its name is `video_id:start`. Tables are canonical: videos sorted by id,
segments by (video, start). Hence two runs over the same videos have equal tables whatever order they read them in, and
"tie-break by segment" is the order of the indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yt8m_assets.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """A table of segments. Raises DataError when it is not canonical (see `Segments.sorted`)."""

    video_ids: np.ndarray
    """Video ids, str [V], strictly ascending."""
    video: np.ndarray
    """Index of each segment's video, int32 [S], ascending."""
    start: np.ndarray
    """First second of each segment, int32 [S], ascending within a video."""

    def __post_init__(self) -> None:
        video_ids = np.asarray(self.video_ids, dtype=str)
        object.__setattr__(self, "video_ids", video_ids)
        object.__setattr__(self, "video", np.ascontiguousarray(self.video, dtype=np.int32))
        object.__setattr__(self, "start", np.ascontiguousarray(self.start, dtype=np.int32))
        if self.video.shape != self.start.shape or self.video.ndim != 1:
            raise DataError(f"segment table: {self.video.shape} videos for {self.start.shape} starts")
        unsorted = np.flatnonzero(video_ids[1:] <= video_ids[:-1])
        if unsorted.size:
            raise DataError(f"segment table: video ids not strictly ascending at {str(video_ids[unsorted[0] + 1])!r}")
        if not np.array_equal(np.unique(self.video), np.arange(video_ids.size)):
            raise DataError(f"segment table: the video indices are not 0..{video_ids.size - 1}, each used")
        keys = self.keys()
        unsorted = np.flatnonzero(keys[1:] <= keys[:-1])
        if unsorted.size:
            raise DataError(f"segment table: segments not ascending or repeated at {self.name(int(unsorted[0]) + 1)}")

    @classmethod
    def sorted(cls, video_ids: Sequence[str] | np.ndarray, video: np.ndarray, start: np.ndarray):
        """The canonical table of the given segments, and where each of them lies in it.

        Arguments: video ids str [V] (unique), video index int [S], start int [S], in any order, each segment once.
        Returns (Segments, int32 [S]: new index of each given segment). Raises DataError naming a repeated id.
        """
        given = np.asarray(video_ids, dtype=str)
        names, counts = np.unique(given, return_counts=True)
        if np.any(counts > 1):
            raise DataError(f"segment table: video id {str(names[counts > 1][0])!r} occurs more than once")
        video = np.asarray(video, dtype=np.int64)
        unique = np.unique(given[np.unique(video)])  # a video without segments is not in the table
        renumbered = np.searchsorted(unique, given).astype(np.int32)[video]
        start = np.asarray(start, dtype=np.int32)
        order = np.argsort(segment_keys(renumbered, start), kind="stable")
        position = np.empty(order.size, np.int32)
        position[order] = np.arange(order.size, dtype=np.int32)
        return cls(video_ids=unique, video=renumbered[order], start=start[order]), position

    def __len__(self) -> int:
        return int(self.video.size)

    def keys(self) -> np.ndarray:
        """int64 [S]: video index and start packed, ascending."""
        return segment_keys(self.video, self.start)

    def name(self, index: int) -> str:
        """The `video_id:start` of one segment."""
        return f"{self.video_ids[self.video[index]]}:{self.start[index]}"

    def ids(self) -> np.ndarray:
        """`video_id:start` of every segment, str [S]."""
        if not len(self):
            return np.empty(0, dtype="<U1")
        return np.strings.add(np.strings.add(self.video_ids[self.video], ":"), self.start.astype(str))

    def same_as(self, other: "Segments") -> bool:
        """Whether both tables hold the same segments (hence the same indices)."""
        return self is other or (
            np.array_equal(self.video_ids, other.video_ids)
            and np.array_equal(self.video, other.video)
            and np.array_equal(self.start, other.start)
        )

    def find(self, video_ids: np.ndarray, video: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Indices of the given segments in this table, int32 [n]; -1 where a segment is not in it."""
        if not len(self) or not len(video_ids):
            return np.full(np.shape(video), -1, np.int32)
        slot = np.searchsorted(self.video_ids, video_ids).clip(max=self.video_ids.size - 1)
        own_video = np.where(self.video_ids[slot] == video_ids, slot, -1)[np.asarray(video, dtype=np.int64)]
        wanted, keys = segment_keys(own_video, start), self.keys()
        index = np.searchsorted(keys, wanted).clip(max=keys.size - 1)
        return np.where((own_video >= 0) & (keys[index] == wanted), index, -1).astype(np.int32)


def segment_keys(video: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Video index and start packed into int64: sorts as (video, start)."""
    return (np.asarray(video, dtype=np.int64) << 32) + np.asarray(start, dtype=np.int64)


def split_segment_id(name: str) -> tuple[str, int]:
    """`video_id:start` as its parts. Raises DataError when it is not of that form."""
    video_id, colon, start = name.rpartition(":")
    if not colon or not video_id or not (start.isascii() and start.isdigit() and len(start) <= 9):
        raise DataError(f"segment id {name!r}: expected video_id:start")
    return video_id, int(start)
