"""What one record holds."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SegmentLabels:
    """Ratings of 5-second segments of a video, one row a rating (SPEC section 1)."""

    start_times: np.ndarray
    """int64 [N]: first second of the rated segment."""
    class_ids: np.ndarray
    """int64 [N]: the class that was rated."""
    scores: np.ndarray
    """float32 [N]: 1 where raters saw the class, 0 where they did not."""

    def __len__(self) -> int:
        return len(self.start_times)


@dataclass(frozen=True, eq=False)
class Video:
    """One record of any release: frame level, with or without labels and ratings, or video level."""

    video_id: str
    """The id (`id`, or `video_id` in the 2017 release)."""
    frames: np.ndarray | None
    """uint8 [T, F], rgb then audio, not truncated; None for a video-level record."""
    labels: np.ndarray
    """int64 [L]: the classes of the whole video; empty where unlabelled."""
    segments: SegmentLabels | None = None
    """The ratings, or None where the record has none."""
    mean_features: np.ndarray | None = None
    """float32 [F]: mean rgb and audio of a video-level record; None for a frame-level one."""

    @property
    def num_frames(self) -> int:
        """Seconds of the video; 0 for a video-level record."""
        return 0 if self.frames is None else len(self.frames)
