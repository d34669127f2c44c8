"""Rankings: per class, the segments that show it, best first; in memory and on disk.

On disk: `ranking.parquet` (class_id, segment, score; sorted by class, best first) and `segments.parquet` (video_id,
start). With pandas: `pandas.read_parquet("ranking.parquet")` and `pandas.read_parquet("segments.parquet")`;
`segment` is the row in the latter. Each class is one row group, so a class is read and written without the others.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.ranking.segments import Segments, split_segment_id

TOP_K = 100_000
"""Segments of a class that the challenge's MAP counts; no list of a recipe is longer (decision 0010)."""
RANKING_FILE = "ranking.parquet"
SEGMENTS_FILE = "segments.parquet"
_CLASSES = b"yt8m.class_ids"


class RankingSource(Protocol):
    """What fusion, search and the submission ask of a ranking, in memory (`Ranking`) or on disk (`RankingReader`)."""

    @property
    def class_ids(self) -> np.ndarray: ...

    @property
    def segments(self) -> Segments: ...

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Per class the segments, best first. Raises DataError when the arrays contradict each other."""

    class_ids: np.ndarray
    """Classes, int32 [C], strictly ascending."""
    offsets: np.ndarray
    """Class c holds the entries offsets[c] to offsets[c + 1], int64 [C + 1]."""
    segment: np.ndarray
    """Row of each entry in the segment table, int32 [N], best first within a class."""
    score: np.ndarray
    """Score of each entry, float32 [N], descending within a class."""
    segments: Segments
    """The table of segments."""

    def __post_init__(self) -> None:
        for name, dtype in (("class_ids", np.int32), ("offsets", np.int64), ("segment", np.int32)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        object.__setattr__(self, "score", np.ascontiguousarray(self.score, dtype=np.float32))
        if np.any(self.class_ids[1:] <= self.class_ids[:-1]):
            raise DataError("ranking: class ids must be strictly ascending")
        if self.offsets.size != self.class_ids.size + 1 or np.any(np.diff(self.offsets) < 0) or self.offsets[0]:
            raise DataError(f"ranking: {self.offsets.size} offsets do not delimit {self.class_ids.size} classes")
        if not self.segment.size == self.score.size == self.offsets[-1]:
            raise DataError(f"ranking: {self.segment.size} segments, {self.score.size} scores, end {self.offsets[-1]}")
        if self.segment.size and not (self.segment.min() >= 0 and self.segment.max() < len(self.segments)):
            raise DataError(f"ranking: an entry lies outside the table of {len(self.segments)} segments")

    @classmethod
    def from_entries(cls, entries: Iterable[tuple[int, np.ndarray, np.ndarray]], segments: Segments) -> "Ranking":
        """Collect (class, segment int [n], score [n]) triples, classes in any order."""
        rows = sorted(entries, key=lambda row: row[0])
        return cls(
            class_ids=np.array([row[0] for row in rows], np.int32),
            offsets=np.cumsum([0, *(len(row[1]) for row in rows)]),
            segment=np.concatenate([row[1] for row in rows]) if rows else np.empty(0, np.int32),
            score=np.concatenate([row[2] for row in rows]) if rows else np.empty(0, np.float32),
            segments=segments,
        )

    @classmethod
    def from_dict(cls, lists: Mapping[int, Sequence[str]]) -> "Ranking":
        """From {class: ["video_id:start", ...] best first}; the scores are n/n, (n-1)/n, ..., 1/n."""
        names = sorted({name for ids in lists.values() for name in ids})
        parts = [split_segment_id(name) for name in names]
        video_ids, video = np.unique(np.array([part[0] for part in parts], dtype=str), return_inverse=True)
        segments, position = Segments.sorted(video_ids, video, np.array([part[1] for part in parts], np.int32))
        index = dict(zip(names, position.tolist(), strict=True))
        rows = []
        for class_id, ids in lists.items():
            if len(set(ids)) != len(ids):
                raise DataError(f"class {class_id}: a segment is listed more than once")
            rows.append((class_id, np.array([index[name] for name in ids], np.int32), place_scores(len(ids))))
        return cls.from_entries(rows, segments)

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and scores float32 [n] of a class, best first; empty for a class it does not hold."""
        row = int(np.searchsorted(self.class_ids, class_id))
        if row == self.class_ids.size or self.class_ids[row] != class_id:
            return self.segment[:0], self.score[:0]
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.segment[part], self.score[part]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for class_id in self.class_ids.tolist():
            yield class_id, *self.entries(class_id)

    def to_dict(self) -> dict[int, list[str]]:
        """{class: ["video_id:start", ...] best first}."""
        names = self.segments.ids()
        return {class_id: names[segment].tolist() for class_id, segment, _ in self}


def place_scores(count: int) -> np.ndarray:
    """The scores n/n, (n-1)/n, ..., 1/n of a list known by its order alone, float32 [n]."""
    return (np.arange(count, 0, -1, dtype=np.float64) / max(count, 1)).astype(np.float32)


class RankingWriter:
    """Writes a ranking class by class, classes ascending; equal input gives equal bytes.

    A context manager. The files are for a folder that nobody reads yet (an artifact in the making): on an exception
    they are left incomplete and the folder is to be thrown away.
    """

    def __init__(self, folder: Path, class_ids: np.ndarray, segments: Segments) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.files = [folder / RANKING_FILE, folder / SEGMENTS_FILE]
        table = pa.table(
            {
                "video_id": pa.array(segments.video_ids[segments.video].tolist(), pa.string()),
                "start": pa.array(segments.start),
            }
        )
        pq.write_table(table, self.files[1], compression="zstd")
        self._class_ids = np.asarray(class_ids, np.int32).tolist()
        self._num_segments, self._written = len(segments), 0
        schema = pa.schema([("class_id", pa.int32()), ("segment", pa.int32()), ("score", pa.float32())])
        schema = schema.with_metadata({_CLASSES: json.dumps(self._class_ids).encode()})
        self._schema = schema
        self._writer = pq.ParquetWriter(
            self.files[0],
            schema,
            compression="zstd",
            use_dictionary=["class_id"],
            write_statistics=["class_id"],
            use_byte_stream_split=["score"],
        )

    def write(self, class_id: int, segment: np.ndarray, score: np.ndarray) -> None:
        """Append a class: rows of the segment table int32 [n], best first, and their scores float32 [n]."""
        import pyarrow as pa

        if self._written >= len(self._class_ids) or self._class_ids[self._written] != class_id:
            raise DataError(
                f"ranking file: class {class_id} does not come next in {self._class_ids[self._written :][:3]}"
            )
        self._written += 1
        if len(segment) == 0:
            return
        if not 0 <= int(segment.min()) <= int(segment.max()) < self._num_segments:
            raise DataError(f"ranking file: class {class_id} names a segment outside 0..{self._num_segments - 1}")
        columns = [
            pa.array(np.full(len(segment), class_id, np.int32)),
            pa.array(np.asarray(segment, np.int32)),
            pa.array(np.asarray(score, np.float32)),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=len(segment))

    def __enter__(self) -> "RankingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if error is None and self._written != len(self._class_ids):
            raise DataError(f"ranking file: {self._written} of {len(self._class_ids)} classes were written")


def write_ranking(ranking: RankingSource, folder: Path) -> list[Path]:
    """Write a ranking's two files into a folder; returns their paths. Equal rankings give equal bytes."""
    with RankingWriter(folder, ranking.class_ids, ranking.segments) as writer:
        for class_id in ranking.class_ids.tolist():
            writer.write(class_id, *ranking.entries(class_id))
    return writer.files


class RankingReader:
    """A ranking on disk, read class by class: holds the segment table and nothing else (a `RankingSource`).

    Raises DataError naming the file when it is not a ranking.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(folder / SEGMENTS_FILE, memory_map=False)
            self._file: Any = pq.ParquetFile(folder / RANKING_FILE)
            self.segments = _segments(table)
            self.class_ids = np.array(json.loads(self._file.schema_arrow.metadata[_CLASSES]), np.int32)
            self._groups = {self._group_class(number): number for number in range(self._file.num_row_groups)}
        except (pa.ArrowException, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise DataError(f"{folder}: not a ranking: {error}") from error

    def _group_class(self, number: int) -> int:
        statistics = self._file.metadata.row_group(number).column(0).statistics
        if statistics.min != statistics.max:
            raise DataError(
                f"{RANKING_FILE}: row group {number} mixes the classes {statistics.min} and {statistics.max}"
            )
        return int(statistics.min)

    def entries(self, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments int32 [n] and scores float32 [n] of a class, best first; empty for a class it does not hold."""
        if class_id not in self._groups:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        table = self._file.read_row_group(self._groups[class_id], columns=["segment", "score"])
        return table["segment"].to_numpy(), table["score"].to_numpy()


def _segments(table: Any) -> Segments:
    """The table of segments.parquet: runs of equal ids are the videos."""
    names = table["video_id"].combine_chunks().dictionary_encode()
    video_ids = np.array(names.dictionary.to_pylist(), dtype=str)
    return Segments(video_ids=video_ids, video=names.indices.to_numpy(), start=table["start"].to_numpy())


def read_ranking(folder: Path) -> Ranking:
    """The whole ranking of a folder in memory (8 bytes an entry). Raises DataError naming what is wrong."""
    reader = RankingReader(folder)
    rows = [(class_id, *reader.entries(class_id)) for class_id in reader.class_ids.tolist()]
    return Ranking.from_entries(rows, reader.segments)
