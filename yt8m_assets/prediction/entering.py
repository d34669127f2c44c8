"""Scores that can still enter a ranking, picked out on the device, where it has no room for the lists themselves.

Of a test set's 2.6 million segments a class keeps a hundred thousand. When a third of them is scored, one score in
eight reaches the list's end, at last one in 26; to copy all and look at them on the host costs many times what
computing them does.

Shapes: S segments of a block, R rated classes.
"""

import numpy as np
import torch
from torch import Tensor

from yt8m_assets.device.transfer import Arriving, send
from yt8m_assets.prediction.device_topk import demote_edges
from yt8m_assets.ranking.topk import StreamingTopK

_SHARE = 8
"""One score in so many has room on the way to the host; where more can enter, all are copied."""


class Entering:
    """The entering scores of a cell in one block, on their way to the host; all of them while its lists are filling.

    Arguments: `scores` float32 [S, R]; `best`, where they go; `edge` bool [S], segments demoted as a video's edge.
    """

    def __init__(self, scores: Tensor, best: StreamingTopK, edge: np.ndarray) -> None:
        self.scores, self.best = scores, best
        self.size, self.capacity = len(scores), -(-scores.numel() // _SHARE)
        demoted = demote_edges(scores, edge)
        self._numbers = None
        if best.is_open:
            values = demoted.t().flatten()
        else:
            enters = demoted >= send(best.threshold, scores.device)
            by_class = enters.t().contiguous()
            found = torch.nonzero_static(by_class.flatten(), size=self.capacity, fill_value=0)[:, 0]
            rows, classes = found % self.size, found // self.size
            values = demoted[rows, classes]
            self._numbers = Arriving(torch.cat([by_class.sum(1, dtype=torch.int32), rows.int()]))
        self._values = Arriving(torch.cat([torch.stack(scores.aminmax()), values]))

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest score of all, not-a-number if any is."""
        low, high = self._values.get()[:2].tolist()
        return low, high

    def give(self, rows: np.ndarray) -> bool:
        """Put the scores of the segments `rows` int [S] in; false, and nothing is done, where they had no room."""
        values = self._values.get().numpy()[2:]
        if self._numbers is None:
            self.best.update_all(values.reshape(-1, self.size), rows)
            return True
        counts, found = np.split(self._numbers.get().numpy(), [self.scores.shape[1]])
        total = int(counts.sum(dtype=np.int64))
        if total > self.capacity:
            return False
        # A copy: a list keeps what enters for many blocks, and would keep the page-locked room of all that came.
        self.best.update_entering(counts, rows[found[:total]], values[:total].copy())
        return True
