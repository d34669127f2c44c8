"""Scores that can still enter a ranking, picked out on the device: the others, nearly all of them, stay there.

Of a test set's fifty million segments a class keeps a hundred thousand. Once its list is full, one score in some
hundred reaches the list's end; to copy all and look at them on the host costs many times what computing them does.

Shapes: S segments of a block, R rated classes.
"""

import numpy as np
import torch
from torch import Tensor

from yt8m_assets.device.transfer import Arriving
from yt8m_assets.ranking.demotion import EDGE
from yt8m_assets.ranking.topk import StreamingTopK

_SHARE = 8
"""One score in so many has room on the way to the host; where more can enter, all are copied."""


class Entering:
    """The entering scores of a cell in one block, on their way to the host.

    Arguments: `scores` float32 [S, R]; `threshold` float32 [R], the end of each class's list; `edge` bool [S], segments
    that are demoted as a video's edge.
    """

    def __init__(self, scores: Tensor, threshold: np.ndarray, edge: np.ndarray) -> None:
        self.scores, self.capacity = scores, -(-scores.numel() // _SHARE)
        size, classes = scores.shape
        device = scores.device
        demoted = scores - torch.from_numpy(edge).to(device, non_blocking=True)[:, None] * float(EDGE)
        enters = demoted >= torch.from_numpy(threshold).to(device, non_blocking=True)
        by_class = enters.t().contiguous()
        found = torch.nonzero_static(by_class.flatten(), size=self.capacity, fill_value=0)[:, 0]
        values = demoted.flatten()[found % size * classes + found // size]
        counts = by_class.sum(1, dtype=torch.int32)
        self._numbers = Arriving(torch.cat([counts, (found % size).int()]))
        self._values = Arriving(torch.cat([torch.stack(scores.aminmax()), values]))

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest score of all, not-a-number if any is."""
        low, high = self._values.get()[:2].tolist()
        return low, high

    def give(self, best: StreamingTopK, rows: np.ndarray) -> bool:
        """Put the scores of the segments `rows` int [S] in; false, and nothing is done, where they had no room."""
        numbers = self._numbers.get().numpy()
        counts, found = np.split(numbers, [self.scores.shape[1]])
        total = int(counts.sum(dtype=np.int64))
        if total > self.capacity:
            return False
        best.update_entering(counts, rows[found[:total]], self._values.get().numpy()[2 : 2 + total])
        return True
