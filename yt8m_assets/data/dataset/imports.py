"""Others' features become shards of this project: whitened, quantised, under legal ids, with labels where given."""

import base64
import csv
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yt8m_assets.data.records.examples import FEATURE_NAMES, FEATURE_SIZES, encode_sequence_example
from yt8m_assets.data.records.foreign import ForeignVideo, Whitening, parse_foreign, quantise
from yt8m_assets.data.records.framing import RecordWriter
from yt8m_assets.data.records.parsing import VIDEO_ID
from yt8m_assets.data.records.reader import iterate_records
from yt8m_assets.data.records.vocabulary import NUMBER
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.progress import Progress
from yt8m_assets.storage import atomic_write

IDS_FILE = "ids.csv"
IDS_HEADER = ["video_id", "name", "seconds", "source"]
SHARD_VIDEOS = 256
MOST_APART = 2
"""Seconds by which the ends of picture and sound may differ: what is longer is cut."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import has written."""

    num_videos: int
    num_seconds: int
    num_labelled: int
    """Videos that the file of labels names."""
    shards: tuple[Path, ...]


def legal_id(name: str) -> str:
    """The id of a video: its own name where that is legal, else 11 characters that follow from it."""
    if VIDEO_ID.fullmatch(name):
        return name
    return base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().lower()[:11]


def import_features(
    uris: Iterable[str],
    target: Path,
    *,
    whitening: Mapping[str, Whitening] | None = None,
    labels: Mapping[str, list[int]] | None = None,
    silent: bool = False,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
    progress: Progress,
) -> Imported:
    """Write the videos of extractors' files into `target` as shards `import-00000.tfrecord`, and the table `ids.csv`.

    whitening: the projection of each modality that is not whitened yet. labels: classes by the extractor's name of a
    video. silent: where there is no audio, its features are 0. Raises ConfigError where the target holds an import,
    SchemaMismatchError naming file, record and feature, DataError for an id that two videos share and a label of none.
    """
    if (target / IDS_FILE).exists():
        raise ConfigError(f"{target}: holds an import already; give another folder, or delete it")
    for left in target.glob("import-*.tfrecord"):  # of an import that came to no end
        left.unlink()
    try:
        return _import(uris, target, whitening or {}, labels or {}, silent, feature_sizes, progress)
    except BaseException:
        for made in target.glob("import-*.tfrecord"):
            made.unlink()
        raise


def _import(
    uris: Iterable[str],
    target: Path,
    whitening: Mapping[str, Whitening],
    labels: Mapping[str, list[int]],
    silent: bool,
    feature_sizes: tuple[int, int],
    progress: Progress,
) -> Imported:
    seen: dict[str, tuple[str, str]] = {}
    rows: list[list[object]] = []
    shards: list[Path] = []
    writer: RecordWriter | None = None
    num_seconds, unused = 0, set(labels)
    with ExitStack() as part, progress.task("importing", None, "videos") as task:
        for uri in uris:
            for offset, record, data, _ in iterate_records(uri):
                video = parse_foreign(data, uri, offset, record)
                where = f"{uri}: record {record} at byte {offset}"
                video_id = legal_id(video.name)
                if video_id in seen:
                    other, place = seen[video_id]
                    raise DataError(f"{where}: id {video.name!r} is {video_id}, as {other!r} of {place} is")
                seen[video_id] = video.name, where
                frames = _frames(video, whitening, silent, feature_sizes, where)
                if writer is None or writer.num_records == SHARD_VIDEOS:
                    part.close()
                    shards.append(target / f"import-{len(shards):05d}.tfrecord")
                    writer = part.enter_context(RecordWriter(shards[-1]))
                classes = labels.get(video.name, labels.get(video_id, []))
                unused -= {video.name, video_id}
                writer.write(encode_sequence_example(video_id, frames, classes, feature_sizes=feature_sizes))
                rows.append([video_id, video.name, len(frames), f"{uri}:{record}"])
                num_seconds += len(frames)
                task.advance()
        if unused:
            shown = ", ".join(sorted(unused)[:5])
            raise DataError(f"labels: {len(unused)} videos are not in the features: {shown}")
    if not rows:
        raise DataError("there is no record in these files")
    with atomic_write(target / IDS_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([IDS_HEADER, *rows])
    return Imported(num_videos=len(rows), num_seconds=num_seconds, num_labelled=len(labels), shards=tuple(shards))


def _frames(
    video: ForeignVideo, whitening: Mapping[str, Whitening], silent: bool, sizes: tuple[int, int], where: str
) -> np.ndarray:
    """The frames uint8 [T, F] of both modalities, the longer cut to the shorter."""
    parts = {}
    for modality, size in zip(FEATURE_NAMES, sizes, strict=True):
        values = video.features.get(modality)
        if values is None:
            if modality == "audio" and silent:
                continue
            cure = "; --silent writes zeros in its place" if modality == "audio" else ""
            raise DataError(f"{where}: {video.name!r} has no {modality}{cure}")
        if values.dtype != np.uint8:
            project = whitening.get(modality)
            if project is not None and values.shape[1] != len(project.mean):
                raise DataError(
                    f"{where}: {modality}: {values.shape[1]} floats a frame, the whitening is for {len(project.mean)}"
                )
            values = quantise(values if project is None else project(values))
        if values.shape[1] != size:
            cure = "; --pca whitens floats that are not yet" if modality not in whitening else ""
            raise DataError(f"{where}: {modality}: {values.shape[1]} features a frame, expected {size}{cure}")
        parts[modality] = values
    if "audio" not in parts:
        parts["audio"] = quantise(np.zeros((len(parts["rgb"]), sizes[1])))
    counts = {modality: len(values) for modality, values in parts.items()}
    shortest = min(counts.values())
    if max(counts.values()) - shortest > MOST_APART:
        raise DataError(f"{where}: rgb has {counts['rgb']} seconds, audio {counts['audio']}: not of one video")
    return np.concatenate([parts[modality][:shortest] for modality in FEATURE_NAMES], axis=1)


def read_labels(path: Path, num_classes: int) -> dict[str, list[int]]:
    """Classes by video from a CSV with the columns `id` and `labels` (numbers, separated by spaces).

    Raises DataError naming the line.
    """
    try:
        return _labels(path, num_classes)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a CSV of labels: byte {error.start} is no text") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV of labels: {error}") from error


def _labels(path: Path, num_classes: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        if (header := next(rows, [])) != ["id", "labels"]:
            raise DataError(f"{path}, line 1: expected the columns id,labels, got {','.join(header)[:80]!r}")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if len(row) != 2:
                raise DataError(f"{where}: {len(row)} columns, expected id,labels")
            if row[0] in found:
                raise DataError(f"{where}: {row[0]!r} stands twice")
            words = row[1].split()
            odd = [word for word in words if not (NUMBER.fullmatch(word) and int(word) < num_classes)]
            if odd:
                raise DataError(f"{where}: labels: {odd[0][:40]!r} is no class from 0 to {num_classes - 1}")
            found[row[0]] = sorted({int(word) for word in words})
    return found


def read_ids(folder: Path) -> dict[str, str]:
    """Name -> id of an import's videos, from its table; every id stands for itself, too."""
    with (folder / IDS_FILE).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {row["name"]: row["video_id"] for row in rows} | {row["video_id"]: row["video_id"] for row in rows}
