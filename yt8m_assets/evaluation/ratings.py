"""Ratings of segments: what the raters said about (segment, class) pairs, as arrays."""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from yt8m_assets.data.records.vocabulary import NUMBER
from yt8m_assets.errors import DataError
from yt8m_assets.ranking.segments import Segments, split_segment_id

_HEADERS = (["segment_id", "class_id", "score"], ["video_id", "start", "class_id", "score"])
_SCORE = re.compile(r"[01](\.0*)?")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """One row per rated pair, sorted by (class, video id, start), each pair once. Build it with the classmethods."""

    video_ids: np.ndarray
    """Ids of the rated videos, str [V], ascending."""
    video: np.ndarray
    """Index of each pair's video, int32 [P]."""
    start: np.ndarray
    """First second of each pair's segment, int32 [P]."""
    class_id: np.ndarray
    """Class of each pair, int32 [P], ascending."""
    score: np.ndarray
    """1 where the segment shows the class, else 0, float32 [P]."""

    @classmethod
    def from_arrays(
        cls, video_ids: ArrayLike, video: ArrayLike, start: ArrayLike, class_id: ArrayLike, score: ArrayLike
    ) -> "Ratings":
        """From the columns: video ids str [V], and per pair int [P] video, start, class and score, in any order.

        A pair may repeat itself, not contradict itself.

        Raises DataError naming a pair with two different ratings or a rating other than 0 and 1.
        """
        given = np.asarray(video_ids, dtype=str)
        video, start, class_id = (np.asarray(column, np.int32) for column in (video, start, class_id))
        score = np.asarray(score, np.float32)
        unique, first = np.unique(given, return_inverse=True)
        video = first.astype(np.int32)[video]
        order = np.lexsort((start, video, class_id))
        video, start, class_id, score = video[order], start[order], class_id[order], score[order]
        wrong = np.flatnonzero((score != 0) & (score != 1))
        if wrong.size:
            pair = f"{unique[video[wrong[0]]]}:{start[wrong[0]]}, class {class_id[wrong[0]]}"
            raise DataError(f"rating of {pair} is {score[wrong[0]]}: expected 0 or 1")
        same = (np.diff(video) == 0) & (np.diff(start) == 0) & (np.diff(class_id) == 0)
        clash = np.flatnonzero(same & (np.diff(score) != 0))
        if clash.size:
            at = clash[0]
            raise DataError(f"{unique[video[at]]}:{start[at]}, class {class_id[at]} is rated both 0 and 1")
        kept = np.concatenate([np.ones(min(1, video.size), bool), ~same])
        return cls(video_ids=unique, video=video[kept], start=start[kept], class_id=class_id[kept], score=score[kept])

    @classmethod
    def from_dict(cls, ratings: Mapping[tuple[str, int], float]) -> "Ratings":
        """From {("video_id:start", class): 0 or 1}."""
        parts = [split_segment_id(name) for name, _ in ratings]
        names = np.array([part[0] for part in parts], dtype=str)
        unique, video = np.unique(names, return_inverse=True)
        starts = [part[1] for part in parts]
        return cls.from_arrays(unique, video, starts, [class_id for _, class_id in ratings], list(ratings.values()))

    def to_dict(self) -> dict[tuple[str, int], int]:
        """{("video_id:start", class): 0 or 1}."""
        columns = (
            self.video_ids[self.video].tolist(),
            self.start.tolist(),
            self.class_id.tolist(),
            self.score.tolist(),
        )
        return {
            (f"{name}:{start}", class_id): int(score) for name, start, class_id, score in zip(*columns, strict=True)
        }

    @classmethod
    def read_csv(cls, path: Path) -> "Ratings":
        """From a CSV of `video_id:start,class,score`, or of `video_id,start,class,score`; a header is optional.

        Raises DataError naming file and line.
        """
        names, classes, scores = [], [], []
        for line, row in enumerate(_rows(path), 1):
            if line == 1 and row in _HEADERS:
                continue
            cells = [f"{row[0]}:{row[1]}", *row[2:]] if len(row) == 4 else row
            if len(cells) != 3 or not NUMBER.fullmatch(cells[1]) or not _SCORE.fullmatch(cells[2]):
                raise DataError(f"{path}, line {line}: {','.join(row)[:80]!r} is not video_id:start,class,score")
            try:
                names.append(split_segment_id(cells[0]))
            except DataError as error:
                raise DataError(f"{path}, line {line}: {error}") from error
            classes.append(int(cells[1]))
            scores.append(float(cells[2]))
        unique, video = np.unique(np.array([name for name, _ in names], dtype=str), return_inverse=True)
        return cls.from_arrays(unique, video, [start for _, start in names], classes, scores)

    def __len__(self) -> int:
        return int(self.class_id.size)

    @property
    def positive(self) -> np.ndarray:
        """bool [P]: whether the segment shows the class."""
        return self.score > 0

    def select(self, mask: np.ndarray) -> "Ratings":
        """The pairs of a mask (bool [P]); the video indices stay as they are."""
        return Ratings(
            video_ids=self.video_ids,
            video=self.video[mask],
            start=self.start[mask],
            class_id=self.class_id[mask],
            score=self.score[mask],
        )

    def rows_in(self, segments: Segments) -> np.ndarray:
        """Row of each pair's segment in a segment table, int32 [P]; -1 where the table lacks it."""
        return segments.find(self.video_ids, self.video, self.start)


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a CSV of ratings: byte {error.start} is no text") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV of ratings: {error}") from error
