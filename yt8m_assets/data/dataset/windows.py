"""Five-second segments of a video, shifted in time, and the arithmetic of bytes to features (numpy)."""

from typing import Literal

import numpy as np

from yt8m_assets.errors import ConfigError

SEGMENT_FRAMES = 5
"""Frames (seconds) of a segment."""
MAX_VIDEO_FRAMES = 300
"""Frames of a video that are used."""
Edges = Literal["clamp", "wrap"]

_TABLE = np.arange(256, dtype=np.float32) * np.float32(4 / 255) + np.float32(4 / 512 - 2)


def dequantise(frames: np.ndarray) -> np.ndarray:
    """Bytes to features, `x * (4/255) + (4/512 - 2)`, in float32 (SPEC section 1); any shape."""
    return np.take(_TABLE, frames)


def segment_frame_index(
    num_video_frames: int, shift: int, edges: Edges = "clamp", max_frames: int = MAX_VIDEO_FRAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which frame each row of each segment shows.

    Returns index int64 [S, 5] (-1 for a zero row), starts int64 [S] (seconds, unshifted), num_frames int64 [S]
    (unshifted: fewer than 5 at the end of a video). Shift s shows frames start - s .. start - s + 4 (SPEC section 10).
    "wrap" is the original's circular roll over `max_frames` rows of frames and padding. "clamp" differs from it only
    where the roll shows the other end of the video, or padding inside the segment: there the nearest real frame stands.
    """
    if edges not in ("clamp", "wrap"):
        raise ConfigError(f"edges = {edges!r}: choose 'clamp' or 'wrap'")
    num_used = min(num_video_frames, max_frames)
    starts = np.arange(0, num_used, SEGMENT_FRAMES, dtype=np.int64)
    rows = starts[:, None] + np.arange(SEGMENT_FRAMES, dtype=np.int64)
    index = rows - shift
    if edges == "wrap":
        index %= max_frames
    else:
        inside = rows < num_used
        index = np.where(inside, np.clip(index, 0, num_used - 1), np.maximum(index, 0))
    index[(index >= num_used) | (rows >= max_frames)] = -1
    return index, starts, np.minimum(SEGMENT_FRAMES, num_used - starts)


def take_frames(frames: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `frames` (uint8 [T, F]) by index (-1: a zero row): uint8 [..., F] and their validity, bool [...]."""
    valid = index >= 0
    if not len(frames):
        return np.zeros((*index.shape, frames.shape[1]), np.uint8), np.zeros_like(valid)
    gathered = frames[np.where(valid, index, 0)]
    gathered[~valid] = 0
    return gathered, valid


def segment_windows(
    frames: np.ndarray, shift: int, edges: Edges = "clamp", max_frames: int = MAX_VIDEO_FRAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shifted segments of a video, dequantised but not normalised.

    frames: uint8 [T, F]. Returns float32 [S, 5, F] (rows outside the video are 0.0), starts int64 [S], num_frames
    int64 [S], both of the unshifted segment. See `segment_frame_index` for shift and edges.
    """
    index, starts, num_frames = segment_frame_index(len(frames), shift, edges, max_frames)
    gathered, valid = take_frames(frames, index)
    windows = dequantise(gathered)
    windows[~valid] = 0.0
    return windows, starts, num_frames
