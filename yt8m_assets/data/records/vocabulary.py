"""The vocabulary: names of the classes, and which classes are rated. Parsed strictly, or not at all."""

import csv
import io
import re
from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.records.framing import read_whole
from yt8m_assets.data.records.video import SegmentLabels
from yt8m_assets.errors import MissingDataError, VocabularyError, Yt8mError
from yt8m_assets.storage.cache import ShardCache

MAX_BYTES = 16 * 2**20
"""A vocabulary file may be no larger."""
NUMBER = re.compile(r"[0-9]{1,9}")
"""A class, or a count, as a file may write it: no more digits than a number needs."""


@dataclass(frozen=True)
class VocabularyClass:
    """One row of vocabulary.csv."""

    index: int
    """Number of the class in labels."""
    name: str
    """English name; empty where the data set gives none."""
    num_train_videos: int
    """Videos of the training split that carry it."""


def _read_text(uri: str, cache: ShardCache | None) -> str:
    try:
        content = read_whole(uri, cache)
    except Yt8mError:
        raise
    except FileNotFoundError as error:
        raise MissingDataError(f"{uri}: no such vocabulary file") from error
    except OSError as error:
        raise VocabularyError(f"{uri}: cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise VocabularyError(f"{uri}: {len(content):,} bytes is no vocabulary; the limit is {MAX_BYTES:,}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{uri}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _index(text: str, uri: str, line: int, seen: dict[int, int]) -> int:
    """A class number, each only once. Raises VocabularyError naming the line."""
    if not NUMBER.fullmatch(text):
        raise VocabularyError(f"{uri}, line {line}: expected a class number, got {text[:40]!r}")
    index = int(text)
    if index in seen:
        raise VocabularyError(f"{uri}, line {line}: class {index} stands already in line {seen[index]}")
    seen[index] = line
    return index


def load_segment_classes(uri: str, num_classes: int | None = None, cache: ShardCache | None = None) -> np.ndarray:
    """The rated classes, int32 [R] in the file's order (one number a line below the header `Index`).

    Raises VocabularyError naming the line for anything else, for a class given twice, or one outside num_classes.
    """
    lines = _read_text(uri, cache).splitlines()
    if not lines or lines[0].strip() != "Index":
        raise VocabularyError(f"{uri}, line 1: expected the header 'Index', got {lines[0][:40] if lines else ''!r}")
    seen: dict[int, int] = {}
    while lines and not lines[-1].strip():
        lines.pop()
    classes = [_index(text.strip(), uri, number, seen) for number, text in enumerate(lines[1:], start=2)]
    if not classes:
        raise VocabularyError(f"{uri}: names no class")
    if num_classes is not None and max(classes) >= num_classes:
        where = f"{uri}, line {seen[max(classes)]}"
        raise VocabularyError(f"{where}: class {max(classes)} lies outside the vocabulary of {num_classes} classes")
    return np.array(classes, np.int32)


def load_label_map(uri: str, num_classes: int | None = None, cache: ShardCache | None = None) -> dict[int, int]:
    """Class of the shards -> class of the recipe, from a CSV below the header `Index,NewIndex`.

    Raises VocabularyError naming the line for anything else, a class given twice, or a new one outside num_classes.
    """
    lines = _read_text(uri, cache).splitlines()
    if not lines or lines[0].strip() != "Index,NewIndex":
        found = lines[0][:40] if lines else ""
        raise VocabularyError(f"{uri}, line 1: expected the header 'Index,NewIndex', got {found!r}")
    seen: dict[int, int] = {}
    mapping: dict[int, int] = {}
    for number, text in enumerate(lines[1:], start=2):
        old, _, new = (part.strip() for part in text.partition(","))
        if not text.strip() and number == len(lines):
            break
        if not NUMBER.fullmatch(new) or (num_classes is not None and int(new) >= num_classes):
            raise VocabularyError(f"{uri}, line {number}: NewIndex {new[:40]!r} is no class of {num_classes}")
        mapping[_index(old, uri, number, seen)] = int(new)
    if not mapping:
        raise VocabularyError(f"{uri}: maps no class")
    return mapping


@dataclass(frozen=True)
class ClassView:
    """What labels and ratings become when a record is read: other numbers, or none."""

    mapping: tuple[tuple[int, int], ...] | None = None
    """(class of the shards, class here); what is not among them is left out. None: as they are."""
    rated: frozenset[int] | None = None
    """Ratings of other classes (by the numbers here) are left out; None: none are."""

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """The labels here, int64 [L], each once where they were mapped."""
        if self.mapping is None:
            return labels
        table = dict(self.mapping)
        return np.array(sorted({table[label] for label in labels.tolist() if label in table}), np.int64)

    def segments(self, segments: SegmentLabels) -> SegmentLabels:
        """The ratings here. Of several old classes that are one here, a segment has the one that was seen."""
        starts, classes, scores = segments.start_times, segments.class_ids, segments.scores
        if self.mapping is not None:
            table = dict(self.mapping)
            classes = np.array([table.get(class_id, -1) for class_id in classes.tolist()], np.int64)
            order = np.argsort(scores, kind="stable")  # of equal pairs the last one counts
            starts, classes, scores = starts[order], classes[order], scores[order]
        kept = classes >= 0
        if self.rated is not None:
            kept &= np.isin(classes, list(self.rated))
        return SegmentLabels(starts[kept], classes[kept], scores[kept])


def load_vocabulary(uri: str, cache: ShardCache | None = None) -> dict[int, VocabularyClass]:
    """The classes by number, from vocabulary.csv (columns Index and Name, and TrainVideoCount where given).

    Raises VocabularyError naming the line when a column is missing, a number odd or given twice, or a row too short.
    """
    rows = csv.reader(io.StringIO(_read_text(uri, cache), newline=""), strict=True)
    try:
        header = next(rows, [])
        missing = [name for name in ("Index", "Name") if name not in header]
        if missing:
            raise VocabularyError(
                f"{uri}, line 1: the column {missing[0]} is missing; found {', '.join(header)[:80]!r}"
            )
        count_column = header.index("TrainVideoCount") if "TrainVideoCount" in header else None
        seen: dict[int, int] = {}
        classes = {}
        blank = 0  # the line of an empty row: only at the end of the file is it no row
        for row in rows:
            if not row:
                blank = blank or rows.line_num
                continue
            if blank:
                raise VocabularyError(f"{uri}, line {blank}: is empty, and rows follow")
            if len(row) != len(header):
                raise VocabularyError(f"{uri}, line {rows.line_num}: {len(row)} columns, the header has {len(header)}")
            index = _index(row[header.index("Index")].strip(), uri, rows.line_num, seen)
            count = row[count_column].strip() if count_column is not None else "0"
            if not NUMBER.fullmatch(count):
                raise VocabularyError(f"{uri}, line {rows.line_num}: TrainVideoCount is {count[:40]!r}, not a number")
            classes[index] = VocabularyClass(index, row[header.index("Name")].strip(), int(count))
    except csv.Error as error:
        raise VocabularyError(f"{uri}, line {rows.line_num}: not CSV ({error})") from error
    if not classes:
        raise VocabularyError(f"{uri}: names no class")
    return classes


def class_names(uri: str | None, class_ids: np.ndarray) -> dict[int, str]:
    """A name for each class: from the vocabulary, or `class 17` where there is none."""
    vocabulary = load_vocabulary(uri) if uri else {}
    names = {int(index): vocabulary[int(index)].name if int(index) in vocabulary else "" for index in class_ids}
    return {index: name or f"class {index}" for index, name in names.items()}
