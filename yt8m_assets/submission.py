"""The submission file: `Class,Segments`, then a line `class,id id id` for every rated class, best first.

Nothing is quoted or escaped: ids are restricted to letters, digits, `_` and `-`, so no cell can start a formula except
by a leading `-`, which the challenge's format requires to stay as it is.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yt8m_assets.errors import SubmissionError
from yt8m_assets.ranking.files import TOP_K, RankingSource
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.storage.files import atomic_write

HEADER = "Class,Segments"
SEGMENT_SECONDS = 5
"""Segments start at multiples of this."""
_FAULTS_A_LINE = 10
"""Faults of one line that are listed."""
_CODE_BYTES = 8
"""Video ids of up to so many characters (the test set's have four) are compared as numbers."""
_NO_END = 10**8
"""More seconds than any start of a well-formed segment."""
_START = rb"(?:[05]|[1-9][0-9]{0,5}[05])"
_ID = rb"[A-Za-z0-9_-]{4,11}:" + _START
_VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{4,11}")
_SEGMENT = re.compile(_ID)
_OFF_START = re.compile(rb"[A-Za-z0-9_-]{4,11}:(?:0|[1-9][0-9]{0,6})")
_LINE = re.compile(rb"(?:0|[1-9][0-9]{0,8}),(?:" + _ID + rb" )*" + _ID)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One fault of a submission."""

    line: int
    """Line of the file, from 1; 0 for what is missing from the whole file."""
    text: str
    """What is wrong there."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


def write_submission(
    ranking: RankingSource | Mapping[int, Sequence[str]], path: Path, segment_classes: Sequence[int], k: int = TOP_K
) -> None:
    """Write the first K segments of every rated class, in the given order of classes; atomic, a class at a time.

    Raises SubmissionError, before anything appears under `path`, when a class is missing, empty or repeated, or an id
    is not a legal one; StorageError when the disk is full.
    """
    classes = [int(class_id) for class_id in segment_classes]
    if len(set(classes)) != len(classes) or not classes:
        raise SubmissionError("segment_classes: give every rated class once")
    lines = _dict_lines(ranking, classes, k) if isinstance(ranking, Mapping) else _ranking_lines(ranking, classes, k)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(f"{HEADER}\n".encode())
        for class_id, cells in zip(classes, lines, strict=True):
            if not cells:
                raise SubmissionError(f"class {class_id}: the ranking holds no segment for it")
            file.write(b"%d," % class_id)
            file.write(cells)
            file.write(b"\n")


def _dict_lines(lists: Mapping[int, Sequence[str]], classes: list[int], k: int) -> Iterator[bytes]:
    for class_id in classes:
        ids = lists.get(class_id, ())[:k]
        cells = " ".join(ids).encode()
        for name in ids:
            if not _SEGMENT.fullmatch(name.encode()):
                raise SubmissionError(f"class {class_id}: {name!r} is not a legal segment id")
        if len(set(ids)) != len(ids):
            raise SubmissionError(f"class {class_id}: a segment is listed more than once")
        yield cells


def _ranking_lines(ranking: RankingSource, classes: list[int], k: int) -> Iterator[bytes]:
    table = _id_table(ranking.segments)
    for class_id in classes:
        rows = table[ranking.entries(class_id)[0][:k]]
        yield rows.tobytes().translate(None, b"\0")[:-1]


def _id_table(segments: Segments) -> np.ndarray:
    """Every segment's `video_id:start ` as fixed-width bytes, zero padded, void [S]."""
    for video_id in segments.video_ids.tolist():
        if not _VIDEO_ID.fullmatch(video_id):
            raise SubmissionError(f"{video_id!r} is not a legal video id")
    odd = np.flatnonzero((segments.start % SEGMENT_SECONDS != 0) | (segments.start < 0))
    if odd.size:
        raise SubmissionError(f"{segments.name(int(odd[0]))}: starts must be multiples of {SEGMENT_SECONDS}")
    videos = segments.video_ids.astype(bytes)
    starts, which = np.unique(segments.start, return_inverse=True)
    tails = np.array([f":{start} " for start in starts.tolist()], dtype=bytes)
    table = np.zeros((len(segments), videos.itemsize + tails.itemsize), np.uint8)
    table[:, : videos.itemsize] = videos.view(np.uint8).reshape(videos.size, -1)[segments.video]
    table[:, videos.itemsize :] = tails.view(np.uint8).reshape(tails.size, -1)[which]
    return table.view(f"V{table.shape[1]}").ravel()


def validate_submission(
    path: Path,
    segment_classes: Sequence[int],
    known_videos: Mapping[str, int] | Collection[str] | None = None,
    k: int = TOP_K,
) -> list[Problem]:
    """Every fault of a submission file, by line; [] when it is valid.

    `known_videos`: the ids of the test videos; as a mapping to their numbers of frames, starts are checked as well.
    Reads one line at a time. Raises FileNotFoundError.
    """
    classes = {int(class_id) for class_id in segment_classes}
    known = None if known_videos is None else _Known(known_videos)
    line_of_class: dict[int, int] = {}
    problems: list[Problem] = []
    number, line = 0, b""
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            content = line.removesuffix(b"\n")
            texts = _header_faults(content) if number == 1 else _line_faults(content, classes, known, k)
            more = len(texts) - _FAULTS_A_LINE
            if more > 1:  # of a line's hundred thousand segments each may have one
                texts = [*texts[:_FAULTS_A_LINE], f"{more} more faults in this line"]
            problems += [Problem(line=number, text=text) for text in texts]
            class_id = class_of(content) if number > 1 else None
            if class_id is not None and (first := line_of_class.setdefault(class_id, number)) != number:
                problems.append(Problem(line=number, text=f"class {class_id} is repeated (first in line {first})"))
    if not number:
        problems.append(Problem(line=1, text=f"the file is empty; the header is {HEADER!r}"))
    elif not line.endswith(b"\n"):
        problems.append(Problem(line=number, text="the last line does not end: the file is truncated"))
    missing = sorted(classes - set(line_of_class))
    return problems + [Problem(line=0, text=f"class {class_id} is missing") for class_id in missing]


class _Known:
    """The test videos, and how long they are where that is known."""

    def __init__(self, videos: Mapping[str, int] | Collection[str]) -> None:
        lengths = videos if isinstance(videos, Mapping) else dict.fromkeys(videos)
        self._lengths = {name.encode(): length for name, length in lengths.items()}
        numbered = {
            int.from_bytes(name.ljust(_CODE_BYTES, b"\0"), "little"): length
            for name, length in self._lengths.items()
            if len(name) <= _CODE_BYTES
        }
        self._codes = np.array(sorted(numbered), np.uint64)
        ordered = (numbered[int(code)] for code in self._codes)
        self._ends = np.array([_NO_END if end is None else end for end in ordered], np.int64)

    def holds_all(self, cells: bytes) -> bool:
        """Whether a line of well-formed cells surely holds known, different ones; False asks for a closer look."""
        text = np.frombuffer(cells + b" ", np.uint8)
        colon, end = np.flatnonzero(text == ord(":")), np.flatnonzero(text == ord(" "))
        begin = np.concatenate([[0], end[:-1] + 1])
        if (colon - begin).max() > _CODE_BYTES or not len(self._codes):
            return False
        letters = np.zeros((len(begin), _CODE_BYTES), np.uint8)
        for place in range(int((colon - begin).max())):
            row = np.flatnonzero(colon - begin > place)
            letters[row, place] = text[begin[row] + place]
        start = np.zeros(len(begin), np.int64)
        for place in range(int((end - colon).max()) - 1):
            row = np.flatnonzero(end - colon - 1 > place)
            start[row] = start[row] * 10 + text[colon[row] + 1 + place] - ord("0")
        codes = letters.view("<u8").ravel()
        video = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        if (self._codes[video] != codes).any() or (start >= self._ends[video]).any():
            return False
        segment = np.sort(video * _NO_END + start)
        return bool((segment[1:] != segment[:-1]).all())

    def fault(self, name: bytes) -> str | None:
        """What is wrong with a well-formed `video:start`."""
        video, _, start = name.rpartition(b":")
        if video not in self._lengths:
            return f"unknown video {video.decode()!r} in {name.decode()!r}"
        length = self._lengths[video]
        if length is not None and int(start) >= length:
            return f"{name.decode()!r} starts after the video's end ({length} s)"
        return None


def _header_faults(content: bytes) -> list[str]:
    if content == HEADER.encode():
        return []
    hint = ""
    if content.startswith(b"\xef\xbb\xbf"):
        hint = " (it begins with a byte-order mark)"
    elif content.endswith(b"\r"):
        hint = " (lines must end in \\n alone)"
    return [f"the header is {_show(content)}, expected {HEADER!r}{hint}"]


def class_of(content: bytes) -> int | None:
    """The class of a line; None where it cannot be read."""
    head = content.partition(b",")[0]
    return int(head) if head.isdigit() and len(head) <= 9 and str(int(head)).encode() == head else None


def _line_faults(content: bytes, classes: set[int], known: _Known | None, k: int) -> list[str]:
    """The faults of one class's line; a sound line is recognised by one match of the whole."""
    if not content:
        return ["the line is empty"]
    faults = []
    head, comma, cells = content.partition(b",")
    class_id = class_of(content)
    if class_id is None:
        faults.append(f"{_show(head)} is not a class number")
    elif class_id not in classes:
        faults.append(f"unknown class {class_id}")
    if not comma or not cells:
        return [*faults, "no segments are listed"]
    if (count := cells.count(b" ") + 1) > k:
        faults.append(f"{count} segments are listed, at most {k} are allowed")
    sound = _LINE.fullmatch(content) is not None
    if sound and known is not None and known.holds_all(cells):
        return faults
    names = cells.split(b" ")
    if not sound:
        faults += [text for name in names if (text := _segment_fault(name))]
    if len(set(names)) != len(names):
        faults += _repeated(names)
    if known is not None:
        faults += [text for name in names if _SEGMENT.fullmatch(name) and (text := known.fault(name))]
    return faults


def _segment_fault(name: bytes) -> str | None:
    """What is wrong with one `video:start`."""
    if _SEGMENT.fullmatch(name):
        return None
    if not name:
        return "two spaces follow each other, or a space ends the line"
    if _OFF_START.fullmatch(name):
        return f"start of {_show(name)} is not a multiple of {SEGMENT_SECONDS}"
    return f"malformed segment id {_show(name)}"


def _repeated(names: list[bytes]) -> list[str]:
    seen: set[bytes] = set()
    again = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    return [f"segment {_show(name)} is repeated" for name in dict.fromkeys(again) if name]


def _show(content: bytes) -> str:
    text = content[:40].decode("ascii", "backslashreplace")
    return repr(text) + ("..." if len(content) > 40 else "")
