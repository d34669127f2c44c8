"""What a shard or pattern holds, in words and numbers for people."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from yt8m_assets.data.dataset.folds import Duplicate, find_duplicates
from yt8m_assets.data.dataset.shards import expand_patterns, look_at
from yt8m_assets.data.records.examples import FEATURE_SIZES
from yt8m_assets.data.records.parsing import RecordParser
from yt8m_assets.data.records.reader import ReadReport, iterate_records, segments_beyond_end
from yt8m_assets.data.records.video import Video
from yt8m_assets.data.records.vocabulary import load_vocabulary
from yt8m_assets.errors import SchemaMismatchError, Yt8mError
from yt8m_assets.progress import NullProgress, Progress

_SHOWN = 12
_RELEASE = re.compile(r"/([0-9])/(?=frame/|video/)")
KINDS = ("frame level, labelled", "frame level, rated segments", "frame level, no labels", "video level")


@dataclass
class ShardSummary:
    """Counts of one shard."""

    uri: str
    """The shard."""
    size: int
    """Bytes."""
    num_videos: int = 0
    """Good records."""
    num_video_level: int = 0
    """Those of them that hold means instead of frames."""
    num_frames: int = 0
    """Frames of the others."""
    num_labels: int = 0
    """Video-level labels."""
    num_ratings: int = 0
    """Rated (segment, class) pairs."""
    num_positive: int = 0
    """Ratings that say the class is there."""
    num_damaged: int = 0
    """Records that cannot be read, those behind a damaged header estimated."""


@dataclass
class InspectionReport:
    """What was found."""

    pattern: str
    """What was asked for."""
    folder: str = ""
    """The folder that all shards share."""
    shards: list[ShardSummary] = field(default_factory=list)
    """One entry a shard, in order."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Records of each of `KINDS`."""
    lengths: list[int] = field(default_factory=list)
    """Frames of each frame-level video."""
    labels: Counter[int] = field(default_factory=Counter)
    """Videos of each class."""
    rated: Counter[int] = field(default_factory=Counter)
    """Ratings of each class."""
    num_protobuf: int = 0
    """Frame-level records whose unusual encoding needs the slow path."""
    num_outside: int = 0
    """Classes of labels or ratings that lie outside the vocabulary."""
    num_in_both: int = 0
    """Videos that stand in both releases, 2/ with labels and 3/ with ratings, as they should."""
    class_names: dict[int, str] = field(default_factory=dict)
    """Names of classes, where a vocabulary was given."""
    problems: list[str] = field(default_factory=list)
    """What a person should know, one sentence each."""

    def total(self, name: str) -> int:
        """Sum of a shard's count over the shards."""
        return sum(getattr(shard, name) for shard in self.shards)

    def name(self, uri: str) -> str:
        """A shard's path below `folder`."""
        return uri.removeprefix(self.folder).lstrip("/")


def inspect(
    pattern: str | Sequence[str],
    *,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
    num_classes: int | None = None,
    vocabulary_uri: str | None = None,
    progress: Progress | None = None,
) -> InspectionReport:
    """Read every record of the shards and describe them; damage is reported, not raised.

    pattern: shards, patterns, or folders (every *.tfrecord below them). num_classes: report labels outside the
    vocabulary. Raises MissingDataError when nothing matches.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    uris = expand_patterns(
        [os.path.join(each, "**", "*.tfrecord") if os.path.isdir(each) else each for each in patterns]
    )
    steps = zip(*(uri.split("/")[:-1] for uri in uris), strict=False)
    shared = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]
    report = InspectionReport(" ".join(patterns), "/".join(shared))
    if vocabulary_uri:
        try:
            report.class_names = {index: row.name for index, row in load_vocabulary(vocabulary_uri).items()}
        except Yt8mError as error:
            report.problems.append(f"no names of classes: {error}")
    reading = ReadReport(max_quarantined=2**31, quiet=True)
    ids: dict[str, list[str]] = {}
    with (progress or NullProgress()).task("inspecting", len(uris), "shards") as task:
        for uri in uris:
            ids[uri] = _inspect_shard(uri, report, reading, feature_sizes)
            task.advance()
    _find_problems(report, reading, ids, num_classes)
    return report


def _inspect_shard(
    uri: str, report: InspectionReport, reading: ReadReport, feature_sizes: tuple[int, int]
) -> list[str]:
    summary = ShardSummary(uri, look_at(uri).size)
    damaged_before = len(reading.quarantined)
    parser = RecordParser(uri, feature_sizes)
    ids = []
    for offset, record, view, _ in iterate_records(uri, on_corrupt="quarantine", report=reading):
        try:
            layout, video = parser.examine(view, offset, record)
        except SchemaMismatchError as error:
            reading.set_aside(error)
            continue
        reading.num_segments_beyond_end += segments_beyond_end(video)
        report.num_protobuf += layout is None and video.frames is not None
        ids.append(video.video_id)
        _count(video, summary, report)
    summary.num_damaged = sum(record.num_records for record in reading.quarantined[damaged_before:])
    report.shards.append(summary)
    return ids


def _count(video: Video, summary: ShardSummary, report: InspectionReport) -> None:
    summary.num_videos += 1
    summary.num_frames += video.num_frames
    summary.num_labels += len(video.labels)
    report.labels.update(video.labels.tolist())
    if video.frames is None:
        report.kinds[KINDS[3]] += 1
        summary.num_video_level += 1
        return
    report.lengths.append(video.num_frames)
    if video.segments is not None:
        summary.num_ratings += len(video.segments)
        summary.num_positive += int(video.segments.scores.sum())
        report.rated.update(video.segments.class_ids.tolist())
        report.kinds[KINDS[1]] += 1
    else:
        report.kinds[KINDS[0] if len(video.labels) else KINDS[2]] += 1


def _find_problems(
    report: InspectionReport, reading: ReadReport, ids: dict[str, list[str]], num_classes: int | None
) -> None:
    for record in reading.quarantined[:_SHOWN]:
        place = f"{report.name(record.uri)}: record {record.record} at byte {record.offset}"
        report.problems.append(f"{place}: {record.reason}")
    if len(reading.quarantined) > _SHOWN:
        report.problems.append(f"{len(reading.quarantined) - _SHOWN} more damaged records")
    report.problems.extend(
        f"{report.name(shard.uri)}: holds no record"
        for shard in report.shards
        if not shard.num_videos + shard.num_damaged
    )
    report.problems.extend(
        f"{report.name(shard.uri)}: mixes frame-level and {shard.num_video_level} video-level records"
        for shard in report.shards
        if 0 < shard.num_video_level < shard.num_videos
    )
    found = find_duplicates(ids)
    duplicates = [duplicate for duplicate in found if _is_odd(duplicate)]
    report.num_in_both = len(found) - len(duplicates)
    for duplicate in duplicates[:_SHOWN]:
        places = ", ".join(report.name(uri) for uri in duplicate.uris)
        report.problems.append(f"video id twice: {duplicate.video_id} in {places}")
    if len(duplicates) > _SHOWN:
        report.problems.append(f"{len(duplicates) - _SHOWN} more ids occur twice")
    if reading.num_segments_beyond_end:
        report.problems.append(
            f"{reading.num_segments_beyond_end} ratings are of segments that start after their video's end"
        )
    for what, counts in (("label", report.labels), ("rating", report.rated)):
        outside = sorted(index for index in counts if index < 0 or (num_classes is not None and index >= num_classes))
        report.num_outside += len(outside)
        if outside:
            shown = ", ".join(str(index) for index in outside[:_SHOWN])
            report.problems.append(f"{what}s of classes outside the vocabulary: {shown}")
    if report.num_protobuf:
        report.problems.append(f"{report.num_protobuf} records have an unusual encoding and are read the slow way")


def _is_odd(duplicate: Duplicate) -> bool:
    """Whether an id stands more than once within a release: that 2/ and 3/ share videos is how the data is laid out."""
    releases = [found.group(1) if (found := _RELEASE.search(uri)) else "" for uri in duplicate.uris]
    return len(set(releases)) < len(releases)


def render(report: InspectionReport) -> str:
    """The report as text of at most 120 columns."""
    lines = [report.pattern, f"in {report.folder}", ""]
    lines += _table(
        ("shard", "MB", "videos", "frames", "labels", "ratings", "damaged"),
        [
            (
                report.name(shard.uri),
                f"{shard.size / 1e6:.2f}",
                *(f"{n:,}" for n in (shard.num_videos, shard.num_frames, shard.num_labels, shard.num_ratings)),
                f"{shard.num_damaged:,}",
            )
            for shard in report.shards[:_SHOWN]
        ],
    )
    if len(report.shards) > _SHOWN:
        lines.append(f"... and {len(report.shards) - _SHOWN} more shards")
    lines += ["", *_totals(report)]
    for title, counts in (("most frequent labels", report.labels), ("most rated classes", report.rated)):
        if counts:
            names = (f"{index} {report.class_names.get(index, '')}".strip() for index, _ in counts.most_common(5))
            shown = (f"{name} ({count})" for name, (_, count) in zip(names, counts.most_common(5), strict=True))
            lines.append(f"{title}: {', '.join(shown)}; {len(counts)} classes in all")
    lines += ["", "problems:" if report.problems else "no problems"]
    return "\n".join(lines + [f"  - {problem}" for problem in report.problems]) + "\n"


def _totals(report: InspectionReport) -> list[str]:
    lines = [
        f"{len(report.shards)} shards, {report.total('size') / 1e6:,.2f} MB, {report.total('num_videos'):,} videos"
    ]
    lines += [f"  {report.kinds[kind]:,} {kind}" for kind in KINDS if report.kinds[kind]]
    if report.lengths:
        low, middle, high = np.percentile(report.lengths, (0, 50, 100)).astype(int)
        lines.append(
            f"lengths: {low} to {high} frames (seconds), median {middle}; {report.total('num_frames'):,} in all"
        )
    if report.num_in_both:
        lines.append(
            f"videos in both releases (2/ with labels, 3/ with ratings): {report.num_in_both:,}, as it should be"
        )
    ratings = report.total("num_ratings")
    if ratings:
        lines.append(f"ratings: {ratings:,}, of which {report.total('num_positive') / ratings:.1%} positive")
    return lines


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Left-aligned first column, right-aligned numbers."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    cells = [[row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
             for row in [header, *rows]]  # fmt: skip
    return ["  ".join(row) for row in cells]
