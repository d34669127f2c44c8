"""Encoding of records in the layout of the released data, byte for byte reproducible."""

import numpy as np

from yt8m_assets.data.records.video import SegmentLabels
from yt8m_assets.data.records.wire import (
    bytes_feature,
    field,
    float_feature,
    frame_header,
    int64_feature,
    map_entry,
    varint,
)
from yt8m_assets.errors import DataError

FEATURE_NAMES = ("rgb", "audio")
"""Names of the feature lists, in the order of a frame's bytes."""
FEATURE_SIZES = (1024, 128)
"""Bytes of each feature per second in the released data."""


def encode_sequence_example(
    video_id: str,
    frames: np.ndarray,
    labels: np.ndarray | list[int] | tuple[int, ...] | None = None,
    segments: SegmentLabels | None = None,
    *,
    feature_sizes: tuple[int, int] = FEATURE_SIZES,
) -> bytes:
    """A frame-level record (SPEC section 1): equal arguments give equal bytes.

    frames: uint8 [T, sum(feature_sizes)], rgb then audio; a size of 0 leaves a list out. labels, segments: None leaves
    their features out.
    Raises DataError when shape or dtype differ.
    """
    if frames.dtype != np.uint8 or frames.ndim != 2 or frames.shape[1] != sum(feature_sizes):
        raise DataError(
            f"{video_id}: frames are {frames.dtype} {frames.shape}, expected uint8 [T, {sum(feature_sizes)}]"
        )
    entries = [map_entry("id", bytes_feature(video_id.encode()))]
    if labels is not None:
        entries.append(map_entry("labels", int64_feature(np.asarray(labels, np.int64))))
    if segments is not None:
        starts = np.asarray(segments.start_times, np.int64)
        entries += [
            map_entry("segment_start_times", int64_feature(starts)),
            map_entry("segment_end_times", int64_feature(starts + 5)),
            map_entry("segment_labels", int64_feature(np.asarray(segments.class_ids, np.int64))),
            map_entry("segment_scores", float_feature(segments.scores)),
        ]
    columns = zip(FEATURE_NAMES, np.split(frames, [feature_sizes[0]], axis=1), strict=True)
    lists = b"".join(_list_entry(name, column) for name, column in columns if column.shape[1])
    return field(1, b"".join(entries)) + field(2, lists)


def _list_entry(name: str, frames: np.ndarray) -> bytes:
    """One entry of FeatureLists: every frame costs the same number of bytes, so one array holds them all."""
    header = np.frombuffer(frame_header(frames.shape[1]), np.uint8)
    encoded = np.empty((len(frames), len(header) + frames.shape[1]), np.uint8)
    encoded[:, : len(header)] = header
    encoded[:, len(header) :] = frames
    content = encoded.tobytes()
    key = field(1, name.encode())
    head = key + b"\x12" + varint(len(content))
    return b"\x0a" + varint(len(head) + len(content)) + head + content
