"""The original's rules restated, for tests alone: what it computes where the product does otherwise (SPEC section 9).

Ties: a heap of (score, label) pairs whose array order is shuffled with a fixed seed before a stable sort. Segment MAP:
the newline is kept, so that a line's last id matches no rating.
"""

import heapq
import random
from collections.abc import Mapping, Sequence

import numpy as np


def original_ap_at_n(
    predictions: Sequence[float], actuals: Sequence[float], n: int | None, total: float | None = None
) -> float:
    """The original's AP of a list: shuffled with seed 0, then sorted."""
    size = len(predictions)
    random.seed(0)
    shuffle = random.sample(range(size), size)
    predictions = [predictions[i] for i in shuffle]
    actuals = [actuals[i] for i in shuffle]
    order = sorted(range(size), key=lambda i: predictions[i], reverse=True)
    positives = sum(1 for a in actuals if a > 0) if total is None else total
    if positives == 0:
        return 0.0
    if n is not None:
        positives = min(positives, n)
    hits, sum_precision = 0.0, 0.0
    for place, index in enumerate(order[:n]):
        if actuals[index] > 0:
            hits += 1
            sum_precision += hits / (place + 1)
    return sum_precision / positives


def original_streaming_ap(
    predictions: np.ndarray, actuals: np.ndarray, n: int | None, chunks: int, total: float | None = None
) -> float:
    """The original's streaming AP: a min-heap of the n best, popped then pushed, fed in chunks."""
    heap: list[tuple[float, float]] = []
    positives = 0.0 if total is None else total
    for part in np.array_split(np.arange(len(predictions)), chunks):
        if total is None:
            positives += sum(actuals[i] > 1e-5 for i in part.tolist())
        for i in part.tolist():
            pair = (predictions[i], actuals[i])
            if n is None or len(heap) < n:
                heapq.heappush(heap, pair)
            elif predictions[i] > heap[0][0]:
                heapq.heappop(heap)
                heapq.heappush(heap, pair)
    if not heap:
        return 0.0
    scores, labels = zip(*heap, strict=True)
    return original_ap_at_n(scores, labels, n, positives)


def original_segment_map(
    lines: Sequence[str], ratings: Mapping[tuple[str, int], float], top_n: int
) -> tuple[float, dict[int, float]]:
    """The original's segment MAP of a submission's lines, newline kept."""
    per_class = {}
    for line in lines:
        if "Class" in line:
            continue
        head, cells = line.split(",")
        class_id, ids = int(head), cells.split(" ")
        ids = ids[:top_n] if top_n else ids
        labels = [ratings[name, class_id] for name in ids if (name, class_id) in ratings]
        total = sum(score > 0 for (_, rated), score in ratings.items() if rated == class_id)
        if total:
            scores = [(len(labels) - i) / len(labels) for i in range(len(labels))]
            per_class[class_id] = original_ap_at_n(scores, labels, None, total)
    return float(np.mean(list(per_class.values()))), per_class
