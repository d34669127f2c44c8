"""The windows of a block as the grids of their videos, for models that see a video at once.

Shapes: W windows of all shifts, V videos, H shifts, S the most segments of a video, R classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models import FrameModel
from models.base import sees_videos
from yt8m_assets.device.transfer import send

Scorer = Callable[[tuple[Tensor, ...], Tensor, Tensor], Tensor]
"""`FrameModel.score_videos`."""


def score_grids(
    score: Scorer,
    embedded: tuple[Tensor, ...],
    index: Tensor,
    num_frames: Tensor,
    begins: np.ndarray,
    num_segments: int,
    batch_size: int,
) -> Tensor:
    """Probabilities float32 [W, R] of windows `index` int64 [W, 5], shift after shift.

    Each shift's are the same `num_segments` segments, a video's first ones at `begins` int64 [V] among them; a pass
    takes whole videos, about `batch_size` windows of them.
    """
    grid, there = video_grids(begins, num_segments, len(index) // num_segments)
    # Places, not a mask, for taking by a mask makes a GPU wait for the host.
    rows, real, places = (send(part, index.device) for part in (grid, there, np.flatnonzero(there)))
    size = max(1, batch_size // grid.shape[1])
    pairs = zip(index[rows].split(size), (num_frames[rows] * real).split(size), strict=True)
    found = torch.cat([score(embedded, part, counts).float() for part, counts in pairs])
    return found.flatten(0, 1)[places]


def scorer_of(model: FrameModel) -> Callable[..., Tensor]:
    """What of a model scores a pass: windows by themselves, or whole videos."""
    return model.score_videos if sees_videos(model) else model.score_windows


def video_grids(begins: np.ndarray, num_segments: int, num_shifts: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each shift and video its windows int64 [H * V, S], and which of these there are, bool [H * V, S]."""
    lengths = np.tile(np.diff(begins, append=num_segments), num_shifts)[:, None]
    firsts = (np.arange(num_shifts)[:, None] * num_segments + begins).reshape(-1, 1)
    place = np.arange(lengths.max())
    return firsts + np.minimum(place, lengths - 1), place < lengths
