"""The best K segments of every class, kept where the scores are made: on the GPU, for as many cells as it has room for.

A segment of a class is one integer: its score's bits, in an order that integers share, above its row's complement. So
the K largest are the K best, and among equal scores the smaller row's, whatever they are picked by. What lies below a
class's K-th is dropped on arrival; the others are appended, and a buffer that is full is cut to K.

Shapes: S segments of a block, C classes, K kept.
"""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from yt8m_assets.device.memory import free_gpu_bytes
from yt8m_assets.device.transfer import Arriving, send
from yt8m_assets.ranking.demotion import EDGE
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.ranking.segments import Segments

_ROOM = 32_768
"""Segments that a buffer takes beyond K at least, or half of K: of two blocks its count is not known yet."""
_NOTHING = torch.iinfo(torch.int64).min
_LOW = 0xFFFFFFFF
_CLASSES = 64
"""Classes that are cut or sorted together: both take room of their own."""
_SHARE = 0.6
"""Of the device's free memory that lists may take: models and what they compute need the rest."""


def capacity_of(k: int, num_segments: int) -> int:
    """Segments that a class's buffer holds."""
    return max(min(k + max(k // 2, _ROOM), num_segments), 1)


def bytes_of(num_classes: int, k: int, num_segments: int) -> int:
    """What a DeviceTopK takes of the device's memory."""
    return num_classes * (capacity_of(k, num_segments) + 1) * 8


def has_room(device: torch.device, num_cells: int, num_classes: int, k: int, num_segments: int) -> bool:
    """Whether a device is a GPU whose free memory takes the lists of so many cells."""
    if device.type != "cuda":
        return False
    return num_cells * bytes_of(num_classes, k, num_segments) <= _SHARE * free_gpu_bytes(device)


class DeviceTopK:
    """Keeps, for each class, the `k` segments with the highest scores, as `StreamingTopK` does: the same ranking.

    Arguments: `class_ids` int [C], the class of each score column; `k`, segments kept per class; `segments`, the table
    that the row numbers of `update` point into; `device`, where the scores will be.
    """

    def __init__(self, class_ids: np.ndarray, k: int, segments: Segments, device: torch.device) -> None:
        self.class_ids, self.k, self.segments = np.asarray(class_ids, np.int32), k, segments
        self._capacity = capacity_of(k, len(segments))
        # One column more: what does not enter is written there, over and over; K better ones are before it then.
        self._keys = torch.full((self.class_ids.size, self._capacity + 1), _NOTHING, dtype=torch.int64, device=device)
        self._count = torch.zeros(self.class_ids.size, dtype=torch.int64, device=device)
        self._threshold = torch.full_like(self._count, _NOTHING)
        self._given = 0
        self._fullest: deque[tuple[Arriving, int]] = deque([(Arriving(torch.zeros((), dtype=torch.int64)), 0)])

    def update(self, scores: Tensor, rows: np.ndarray) -> None:
        """Take in finite scores float32 [S, C] of the segments `rows` int [S], each given once; waits for nothing."""
        places = send(np.ascontiguousarray(rows, np.int64), scores.device)
        # As many at once as a buffer has room for after a cut; one for all segments is never cut.
        size = self._capacity - self.k if self._capacity < len(self.segments) else self._capacity
        for part, at in zip(scores.split(size), places.split(size), strict=True):
            self._append(_ordered(part.t().contiguous()) << 32 | _LOW - at)

    def _append(self, keys_CS: Tensor) -> None:
        if self._bound() + keys_CS.shape[1] > self._capacity:
            self._cut()
        enters_CS = keys_CS > self._threshold[:, None]
        place_CS = self._count[:, None] + enters_CS.cumsum(1) - 1
        self._keys.scatter_(1, place_CS.where(enters_CS, self._capacity), keys_CS)
        self._count += enters_CS.sum(1)
        self._given += keys_CS.shape[1]
        self._fullest.append((Arriving(self._count.max()), self._given))

    def _bound(self) -> int:
        """At most so many does the fullest buffer hold, by the last count that has come to the host."""
        while len(self._fullest) > 1 and self._fullest[1][0].is_here:
            self._fullest.popleft()
        fullest, given = self._fullest[0]
        return int(fullest.get()) + self._given - given

    def _cut(self) -> None:
        """Cut every buffer to its K best, and raise the thresholds."""
        for keys, threshold in zip(self._keys.split(_CLASSES), self._threshold.split(_CLASSES), strict=True):
            best = keys.topk(self.k, sorted=False).values
            keys[:, : self.k] = best
            keys[:, self.k :] = _NOTHING
            threshold.copy_(best.amin(1))
        self._count.clamp_(max=self.k)
        self._fullest = deque([(Arriving(torch.tensor(self.k)), self._given)])

    def finish(self) -> Ranking:
        """The ranking of everything taken in; frees the buffers. Ties are in the order of (video id, start)."""
        length = min(self.k, self._given)
        order = np.argsort(self.class_ids)
        rows, scores = (np.empty((order.size, length), kind) for kind in (np.int32, np.float32))
        for first in range(0, order.size, _CLASSES):
            columns = torch.from_numpy(order[first : first + _CLASSES]).to(self._keys.device)
            best = self._keys[columns].topk(length, sorted=True).values
            rows[first : first + _CLASSES] = (_LOW - (best & _LOW)).int().cpu().numpy()
            scores[first : first + _CLASSES] = _scores(best >> 32).cpu().numpy()
        self.free()
        return Ranking(
            class_ids=self.class_ids[order],
            offsets=np.arange(order.size + 1) * length,
            segment=rows.reshape(-1),
            score=scores.reshape(-1),
            segments=self.segments,
        )

    def free(self) -> None:
        """Give up what was taken in, and its memory."""
        self._keys = self._keys[:, :0].clone()


class Kept:
    """A cell's scores of a block that its lists on the device have taken in: what is still to be known of them.

    Arguments as of `Entering`.
    """

    def __init__(self, scores: Tensor, best: DeviceTopK, edge: np.ndarray, rows: np.ndarray) -> None:
        self.scores = scores
        best.update(demote_edges(scores, edge), rows)
        self._extremes = Arriving(torch.stack(scores.aminmax()))

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest score of all, not-a-number if any is."""
        low, high = self._extremes.get().tolist()
        return low, high

    def give(self, rows: np.ndarray) -> bool:
        """All is where it belongs."""
        return True


def demote_edges(scores: Tensor, edge: np.ndarray) -> Tensor:
    """Scores float32 [S, C] less what the segments `edge` bool [S] at a video's ends are demoted by."""
    return scores - send(edge, scores.device)[:, None] * float(EDGE)


def _ordered(scores: Tensor) -> Tensor:
    """The bits of float32 as int64 that are ordered as the numbers are; -0.0 and 0.0 are one."""
    bits = (scores + 0.0).view(torch.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).long()


def _scores(ordered: Tensor) -> Tensor:
    """The float32 of `_ordered`."""
    bits = ordered.int()
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).view(torch.float32)
