"""Videos in memory, as the passes over them ask for them: no shard, no index."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class MemoryVideos:
    """Videos of given ids and frames uint8 [T, F]; equal ones may be one array."""

    def __init__(self, video_ids: Sequence[str], contents: Sequence[np.ndarray]) -> None:
        self.video_ids, self.contents = np.array(video_ids, "S11"), contents
        self.num_frames, self.shard_sizes = np.array([len(each) for each in contents]), np.array([len(contents)])

    def __len__(self) -> int:
        return len(self.contents)

    def damaged(self, numbers: np.ndarray) -> np.ndarray:
        """None is."""
        return np.zeros(len(numbers), bool)

    def read(self, number: int) -> np.ndarray:
        """Frames of a video."""
        return self.contents[number]

    def ahead(self, needs: Any, **options: Any) -> None:
        """All is here."""
