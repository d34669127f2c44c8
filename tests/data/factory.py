"""Tiny shards for tests: features of 8 + 4 bytes, so that every byte of a file can be tried."""

import struct
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.records.examples import FEATURE_NAMES, FEATURE_SIZES, encode_sequence_example
from yt8m_assets.data.records.framing import RecordWriter, masked_crc
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.data.records.wire import bytes_feature, field, float_feature, int64_feature, map_entry

SIZES = (8, 4)
GOLDEN = Path(__file__).parents[1] / "golden" / "records"


def make_video(
    video_id: str,
    num_frames: int,
    labels: Sequence[int] = (),
    ratings: Sequence[tuple[int, int, float]] | None = None,
    sizes: tuple[int, int] = SIZES,
) -> Video:
    """A video whose bytes follow from its id; ratings are (start, class, score)."""
    generator = np.random.default_rng(list(video_id.encode()))
    frames = generator.integers(0, 256, (num_frames, sum(sizes)), dtype=np.uint8)
    segments = None
    if ratings is not None:
        rows = np.array(ratings, np.float64).reshape(-1, 3)
        segments = SegmentLabels(
            rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2].astype(np.float32)
        )
    return Video(video_id, frames, np.array(labels, np.int64), segments)


def encode(video: Video, sizes: tuple[int, int] = SIZES) -> bytes:
    """The record of a frame-level video."""
    assert video.frames is not None
    return encode_sequence_example(video.video_id, video.frames, video.labels, video.segments, feature_sizes=sizes)


def write_records(path: Path, records: Sequence[bytes]) -> str:
    """A shard of raw records; returns its URI."""
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def write_shard(path: Path, videos: Sequence[Video], sizes: tuple[int, int] = SIZES) -> str:
    """A shard of videos; returns its URI."""
    return write_records(path, [encode(video, sizes) for video in videos])


def write_split(folder: Path, counts: Sequence[int], num_classes: int = 10, name: str = "train") -> list[str]:
    """Shards with `counts` labelled videos of 1 to 14 frames; ids are unique, two labels each."""
    uris, number = [], 0
    for shard, count in enumerate(counts):
        videos = []
        for _ in range(count):
            labels = (number % num_classes, (number * 3 + 1) % num_classes)
            videos.append(make_video(f"vid{number:04d}", 1 + number * 5 % 14, sorted(set(labels))))
            number += 1
        uris.append(write_shard(folder / f"{name}{shard:04d}.tfrecord", videos))
    return uris


def same_video(left: Video, right: Video) -> bool:
    """Whether two videos hold the same."""
    pairs = [(left.frames, right.frames), (left.labels, right.labels), (left.mean_features, right.mean_features)]
    if (left.segments is None) != (right.segments is None):
        return False
    if left.segments is not None and right.segments is not None:
        pairs += [
            (getattr(left.segments, n), getattr(right.segments, n)) for n in ("start_times", "class_ids", "scores")
        ]
    return left.video_id == right.video_id and all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
    )


def sort_options(options: dict[str, Any]) -> tuple[Reading, dict[str, Any], dict[str, Any]]:
    """Options of a dataset, sorted: how shards are read, what `load_videos` takes beside it, and the rest."""
    reading = {field.name for field in fields(Reading)}
    loading = {"memory_budget", "report", "progress", "excluded_ids", "only_ids"}
    return (
        Reading(**{name: value for name, value in options.items() if name in reading}),
        {name: value for name, value in options.items() if name in loading},
        {name: value for name, value in options.items() if name not in reading | loading},
    )


def frame_record(data: bytes) -> bytes:
    """One framed record."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def encode_video_example(
    video_id: str,
    mean_features: np.ndarray,
    labels: np.ndarray | list[int] | tuple[int, ...] | None = None,
    *,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
) -> bytes:
    """A video-level record. mean_features: float32 [sum(feature_sizes)]; labels None leaves them out."""
    entries = [map_entry("id", bytes_feature(video_id.encode()))]
    if labels is not None:
        entries.append(map_entry("labels", int64_feature(np.asarray(labels, np.int64))))
    for name, mean in zip(FEATURE_NAMES, np.split(mean_features, [feature_sizes[0]]), strict=True):
        if len(mean):
            entries.append(map_entry(f"mean_{name}", float_feature(mean)))
    return field(1, b"".join(entries))


def normalise(frames: np.ndarray) -> np.ndarray:
    """L2 normalisation over the last axis, both modalities jointly; a zero frame stays zero (SPEC section 1)."""
    squares = np.einsum("...f,...f->...", frames, frames)[..., None]
    return frames / np.sqrt(np.maximum(squares, np.float32(1e-12)))
