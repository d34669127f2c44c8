"""The windows of a block as the grids of their videos, for models that see a video at once.

Shapes: W windows of a block at one shift, V videos, S the most segments of a video, R classes.
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
    batch_size: int,
) -> Tensor:
    """Probabilities float32 [W, R] of windows `index` int64 [W, 5], a video's first ones at `begins` int64 [V].

    A pass takes whole videos, about `batch_size` windows of them.
    """
    grid, there = video_grids(begins, len(index))
    # Places, not a mask, for taking by a mask makes a GPU wait for the host.
    rows, real, places = (send(part, index.device) for part in (grid, there, np.flatnonzero(there)))
    size = max(1, batch_size // grid.shape[1])
    pairs = zip(index[rows].split(size), (num_frames[rows] * real).split(size), strict=True)
    found = torch.cat([score(embedded, part, counts).float() for part, counts in pairs])
    return found.flatten(0, 1)[places]


def scorer_of(model: FrameModel) -> Callable[..., Tensor]:
    """What of a model scores a pass: windows by themselves, or whole videos."""
    return model.score_videos if sees_videos(model) else model.score_windows


def video_grids(begins: np.ndarray, num_windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each video its windows int64 [V, S], and which of these there are, bool [V, S]."""
    lengths = np.diff(begins, append=num_windows)[:, None]
    place = np.arange(lengths.max())
    return begins[:, None] + np.minimum(place, lengths - 1), place < lengths
