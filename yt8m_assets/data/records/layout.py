"""Where the frames lie inside a record: found by constant strides, proven by every frame's header."""

from typing import NamedTuple

import numpy as np

from yt8m_assets.data.records.examples import FEATURE_NAMES
from yt8m_assets.data.records.wire import frame_header, read_varint


class Layout(NamedTuple):
    """Byte positions inside a record whose encoding is the canonical one."""

    context_start: int
    """First byte of the context's features."""
    context_end: int
    """Byte after them."""
    rgb_start: int
    """First byte of the rgb list (its first frame's header); -1 when there are no feature lists."""
    audio_start: int
    """First byte of the audio list; -1 when there are no feature lists. A list that is not configured is at 0."""
    num_frames: int
    """Frames in both lists."""


class FrameLocator:
    """Finds both feature lists of a record without parsing the frames.

    Inside a list every frame takes `header + size` bytes. If the list's length is a multiple of that and every frame
    starts with exactly the header that announces `size` bytes, no other reading of the bytes is possible. Whatever
    deviates (other sizes, unknown fields, split maps, long varints) gives None and is left to protobuf.
    """

    def __init__(self, feature_sizes: tuple[int, int]) -> None:
        self.feature_sizes = feature_sizes
        named = zip(FEATURE_NAMES, feature_sizes, strict=True)
        self.headers = {name.encode(): frame_header(size) for name, size in named if size}
        self.strides = {
            name.encode(): len(frame_header(size)) + size
            for name, size in zip(FEATURE_NAMES, feature_sizes, strict=True)
            if size
        }

    def locate(self, view: memoryview) -> Layout | None:
        """The layout of a record, or None when its encoding is not the canonical one."""
        layout = self.outline(view)
        return layout if layout is not None and self.headers_match(view, layout) else None

    def outline(self, view: memoryview) -> Layout | None:
        """As `locate`, but nothing is proven until `headers_match` has said yes."""
        try:
            return self._outline(view)
        except (IndexError, ValueError):
            return None

    def _outline(self, view: memoryview) -> Layout | None:
        end = len(view)
        position = context_start = context_end = 0
        if view[0] == 0x0A:
            length, context_start = read_varint(view, 1)
            position = context_end = context_start + length
        if position == end:
            return Layout(context_start, context_end, -1, -1, 0)
        if view[position] != 0x12:
            return None
        length, position = read_varint(view, position + 1)
        if position + length != end:
            return None
        found: dict[bytes, tuple[int, int]] = {}
        while position < end:
            if view[position] != 0x0A:
                return None
            length, position = read_varint(view, position + 1)
            entry_end = position + length
            key_length = view[position + 1]
            key = bytes(view[position + 2 : position + 2 + key_length])
            stride = self.strides.get(key)
            tag = position + 2 + key_length
            if view[position] != 0x0A or stride is None or key in found or view[tag] != 0x12:
                return None
            length, position = read_varint(view, tag + 1)
            if position + length != entry_end or entry_end > end:
                return None
            num_frames, rest = divmod(length, stride)
            if rest:
                return None
            found[key] = (position, num_frames)
            position = entry_end
        if len(found) != len(self.headers):
            return None
        counts = {num_frames for _, num_frames in found.values()}
        rgb_start, audio_start = (found.get(name.encode(), (0, 0))[0] for name in FEATURE_NAMES)
        return Layout(context_start, context_end, rgb_start, audio_start, counts.pop()) if len(counts) == 1 else None

    def headers_match(self, view: memoryview, layout: Layout) -> bool:
        """Whether each frame of both lists starts with the one header that announces the feature's size."""
        if layout.rgb_start < 0:
            return True
        return all(
            self._list_matches(view, key, getattr(layout, f"{key.decode()}_start"), layout.num_frames)
            for key in self.headers
        )

    def _list_matches(self, view: memoryview, key: bytes, start: int, num_frames: int) -> bool:
        if not num_frames:
            return True
        header, stride = self.headers[key], self.strides[key]
        found: np.ndarray = np.ndarray((num_frames, len(header)), np.uint8, view, start, (stride, 1))
        return found.tobytes() == header * num_frames

    def frames(self, view: memoryview, layout: Layout, first: int = 0, count: int | None = None) -> np.ndarray:
        """Copy frames [first, first + count) of a located record: uint8 [count, F]."""
        count = layout.num_frames - first if count is None else count
        frames = np.empty((count, sum(self.feature_sizes)), np.uint8)
        if not count:
            return frames
        column = 0
        for key, header in self.headers.items():
            stride = self.strides[key]
            size = stride - len(header)
            first_byte = getattr(layout, f"{key.decode()}_start") + first * stride + len(header)
            frames[:, column : column + size] = np.ndarray((count, size), np.uint8, view, first_byte, (stride, 1))
            column += size
        return frames
