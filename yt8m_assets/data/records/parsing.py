"""From the bytes of a record to a `Video`: by strides where the encoding allows, else by protobuf; always checked."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from yt8m_assets.data.records.examples import FEATURE_NAMES, FEATURE_SIZES
from yt8m_assets.data.records.layout import FrameLocator, Layout
from yt8m_assets.data.records.video import SegmentLabels, Video
from yt8m_assets.data.records.vocabulary import ClassView
from yt8m_assets.data.records.wire import example_messages
from yt8m_assets.errors import SchemaMismatchError

MAX_FRAMES = 5000
"""Frames a record may hold; the released videos have up to about 500."""
MAX_CONTEXT_BYTES = 2**20
"""Bytes the labels and ratings of a record may take."""
MAX_LABELS = 100_000
"""Labels, or ratings, a record may hold."""
VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{4,11}")
NO_LABELS = np.empty(0, np.int64)
NO_LABELS.setflags(write=False)


class RecordParser:
    """Parses the records of a shard. Every fault is a SchemaMismatchError naming file, record and feature."""

    def __init__(
        self, uri: str, feature_sizes: tuple[int, int] = FEATURE_SIZES, classes: ClassView | None = None
    ) -> None:
        self.uri, self.classes = uri, classes
        self.locator = FrameLocator(feature_sizes)
        self.sizes = {name: size for name, size in zip(FEATURE_NAMES, feature_sizes, strict=True) if size}
        messages = example_messages()
        self._features = messages.Features
        self._sequence_example = messages.SequenceExample

    def parse(self, view: memoryview, offset: int = 0, record: int = 0) -> Video:
        """One record. offset, record: where it lies, for error messages."""
        try:
            return self._parse(view)
        except _Mismatch as mismatch:
            raise SchemaMismatchError(self.uri, offset, record, str(mismatch)) from mismatch.__cause__

    def _parse(self, view: memoryview) -> Video:
        layout = self.locator.outline(view)
        if layout is None:
            return self._parse_protobuf(view)
        if layout.rgb_start < 0:
            return self._video_level(self._context(bytes(view[layout.context_start : layout.context_end])))
        _check_num_frames(layout.num_frames)
        frames = self.locator.frames(view, layout)
        if not self.locator.headers_match(view, layout):  # after the copy, which has brought them into the cache
            return self._parse_protobuf(view)
        video_id, labels, segments = self.context(view[layout.context_start : layout.context_end])
        return Video(video_id, frames, labels, segments)

    def examine(self, view: memoryview, offset: int, record: int) -> tuple[Layout | None, Video]:
        """Check a record without copying its frames.

        Returns its layout, and a Video whose frames are an empty uint8 [num_frames, 0]. The layout is None where the
        encoding is not the canonical one, and for a video-level record.
        """
        layout = self.locator.locate(view)
        if layout is None or layout.rgb_start < 0:
            video = self.parse(view, offset, record)
            frames = None if video.frames is None else np.empty((len(video.frames), 0), np.uint8)
            return None, replace(video, frames=frames)
        try:
            _check_num_frames(layout.num_frames)
            video_id, labels, segments = self.context(view[layout.context_start : layout.context_end])
        except _Mismatch as mismatch:
            raise SchemaMismatchError(self.uri, offset, record, str(mismatch)) from mismatch.__cause__
        return layout, Video(video_id, np.empty((layout.num_frames, 0), np.uint8), labels, segments)

    def context(self, view: memoryview) -> tuple[str, np.ndarray, SegmentLabels | None]:
        """Id, labels and ratings from the bytes of a record's context alone. Raises ValueError naming the feature."""
        if len(view) > MAX_CONTEXT_BYTES:
            raise _Mismatch(f"its context takes {len(view):,} bytes, more than the limit of {MAX_CONTEXT_BYTES:,}")
        return self._annotated(self._context(bytes(view)))

    def _annotated(self, context: Any) -> tuple[str, np.ndarray, SegmentLabels | None]:
        """`read_context`, with the classes as the recipe numbers them."""
        video_id, labels, segments = read_context(context)
        if self.classes is None:
            return video_id, labels, segments
        return video_id, self.classes.labels(labels), segments and self.classes.segments(segments)

    def _context(self, content: bytes) -> Any:
        try:
            return self._features.FromString(content).feature
        except DecodeError as error:
            raise _Mismatch(f"its context is not a tf.train.Features message ({error})") from error

    def _parse_protobuf(self, view: memoryview) -> Video:
        try:
            example = self._sequence_example.FromString(bytes(view))
        except DecodeError as error:
            raise _Mismatch(f"not a tf.train.SequenceExample ({error})") from error
        context, lists = example.context.feature, example.feature_lists.feature_list
        if not any(name in lists for name in self.sizes):
            return self._video_level(context)
        columns = [_list_frames(lists, name, size) for name, size in self.sizes.items()]
        counts = [len(column) for column in columns]
        if len(set(counts)) != 1:
            raise _Mismatch(f"rgb has {counts[0]} frames but audio has {counts[1]}; expected as many")
        video_id, labels, segments = self._annotated(context)
        return Video(video_id, np.concatenate(columns, axis=1), labels, segments)

    def _video_level(self, context: Any) -> Video:
        means = {f"mean_{name}": size for name, size in self.sizes.items()}
        if not any(name in context for name in means):
            raise _Mismatch(f"has neither the feature lists {' and '.join(self.sizes)} nor {' and '.join(means)}")
        parts = []
        for name, size in means.items():
            values = _values(context, name, "float_list")
            if values is None or len(values) != size:
                raise _Mismatch(f"{name}: expected {size} floats, got {'none' if values is None else len(values)}")
            parts.append(np.array(values, np.float32))
        video_id, labels, segments = self._annotated(context)
        return Video(video_id, None, labels, segments, np.concatenate(parts))


class _Mismatch(ValueError):
    """A fault of a record before its place is known."""


def _check_num_frames(num_frames: int) -> None:
    if num_frames > MAX_FRAMES:
        raise _Mismatch(f"has {num_frames:,} frames, more than the limit of {MAX_FRAMES:,}")


def _values(context: Any, name: str, kind: str) -> Any:
    """The values of a feature; None when it is missing. Raises when it is of another kind."""
    if name not in context:
        return None
    feature = context[name]
    found = feature.WhichOneof("kind")
    if found not in (kind, None):
        raise _Mismatch(f"{name}: expected {kind}, got {found}")
    values = getattr(feature, kind).value
    if len(values) > MAX_LABELS:
        raise _Mismatch(f"{name}: holds {len(values):,} values, more than the limit of {MAX_LABELS:,}")
    return values


def _list_frames(lists: Any, name: str, size: int) -> np.ndarray:
    if name not in lists:
        hint = "; feature_sizes = (1024, 0) reads records without audio" if name == "audio" else ""
        raise _Mismatch(f"{name}: expected a feature list of {size} bytes a frame, got none{hint}")
    features = lists[name].feature
    _check_num_frames(len(features))
    frames = []
    for number, feature in enumerate(features):
        values = feature.bytes_list.value
        if feature.WhichOneof("kind") != "bytes_list" or len(values) != 1:
            raise _Mismatch(f"{name}: expected one byte string in frame {number}, got {feature.WhichOneof('kind')}"
                            f" with {len(values)}")  # fmt: skip
        if len(values[0]) != size:
            raise _Mismatch(f"{name}: expected {size} bytes a frame, got {len(values[0])} in frame {number}")
        frames.append(values[0])
    return np.frombuffer(b"".join(frames), np.uint8).reshape(len(frames), size)


def read_context(context: Any) -> tuple[str, np.ndarray, SegmentLabels | None]:
    """Id, labels (int64 [L]) and ratings of a parsed context. Raises ValueError naming the feature."""
    labels = _values(context, "labels", "int64_list")
    label_ids = np.array(labels, np.int64) if labels else NO_LABELS
    starts = _values(context, "segment_start_times", "int64_list")
    return _read_id(context), label_ids, None if starts is None else _read_segments(context, starts)


def _read_id(context: Any) -> str:
    name = "id"
    values = _values(context, name, "bytes_list")
    if values is None or not any(values):  # absent, or there and empty
        name = "video_id" if "video_id" in context else name
        values = _values(context, name, "bytes_list")
    if values is None or len(values) != 1:
        raise _Mismatch(f"id: expected one byte string, got {'none' if values is None else len(values)}")
    text = values[0].decode("ascii", "replace")
    if not VIDEO_ID.fullmatch(text):
        cure = "write videos of your own under such ids: an id stands in front of `:start` in every segment's name"
        raise _Mismatch(f"{name}: expected 4 to 11 of the characters A-Z a-z 0-9 _ -, got {text[:32]!r}; {cure}")
    return text


def _read_segments(context: Any, starts: Any) -> SegmentLabels:
    classes = _values(context, "segment_labels", "int64_list")
    scores = _values(context, "segment_scores", "float_list")
    for name, values in (("segment_labels", classes), ("segment_scores", scores)):
        if values is None or len(values) != len(starts):
            got = "none" if values is None else len(values)
            raise _Mismatch(f"{name}: expected {len(starts)} values as in segment_start_times, got {got}")
    segments = SegmentLabels(np.array(starts, np.int64), np.array(classes, np.int64), np.array(scores, np.float32))
    if len(segments) and segments.start_times.min() < 0:
        raise _Mismatch(f"segment_start_times: {segments.start_times.min()} is negative")
    if not np.isin(segments.scores, (0.0, 1.0)).all():
        odd = segments.scores[~np.isin(segments.scores, (0.0, 1.0))][0]
        raise _Mismatch(f"segment_scores: expected 0 or 1, got {odd}")
    return segments
