"""Metrics of video-level classification: GAP@20, Hit@1, PERR and MAP (SPEC section 9)."""

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.average_precision import average_precision, grouped_average_precision
from yt8m_assets.ranking.sorting import descending_order


class VideoMetrics:
    """The metrics of a stream of batches; of an example its `top_k` best classes are kept (9 bytes each).

    Ties at an example's cut go to the smaller class, in a pool to the earlier example.
    """

    def __init__(self, top_k: int = 20) -> None:
        self.top_k = top_k
        self.num_examples = 0
        self.num_positives: np.ndarray = np.zeros(0, np.int64)
        """int64 [C]: examples that carry each class, kept or not."""
        self._hits_at_one, self._precision_sum = 0.0, 0.0
        self._scores: list[np.ndarray] = []
        self._classes: list[np.ndarray] = []
        self._hits: list[np.ndarray] = []

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Take in probabilities [B, C] and labels [B, C] (positive above 0). Raises DataError for other shapes."""
        probabilities, positive = np.asarray(probabilities), np.asarray(labels) > 0
        if probabilities.shape != positive.shape or probabilities.ndim != 2 or not probabilities.size:
            shapes = f"probabilities of shape {probabilities.shape} for labels of shape {positive.shape}"
            raise DataError(f"{shapes}: need [B, C]")
        num_labels = positive.sum(axis=1)
        best = best_classes(probabilities, max(self.top_k, int(num_labels.max())))
        scores, hits = np.take_along_axis(probabilities, best, 1), np.take_along_axis(positive, best, 1)
        self.num_examples += len(best)
        counts = positive.sum(axis=0)
        self.num_positives = counts if not self.num_positives.size else self.num_positives + counts
        self._hits_at_one += float(hits[:, 0].sum())
        counted = (np.arange(best.shape[1]) < num_labels[:, None]) & (scores > 0)
        self._precision_sum += float(((hits & counted).sum(axis=1) / np.maximum(num_labels, 1)).sum())
        self._scores.append(scores[:, : self.top_k])
        self._classes.append(best[:, : self.top_k].astype(np.int32))
        self._hits.append(hits[:, : self.top_k])

    @property
    def gap(self) -> float:
        """Average precision of all kept pairs in one pool; the positives are those of all classes, kept or not."""
        scores, hits = np.concatenate(self._scores).ravel(), np.concatenate(self._hits).ravel()
        return average_precision(scores, hits, num_positives=float(self.num_positives.sum()))

    @property
    def hit_at_one(self) -> float:
        """Share of examples whose best class is among their labels."""
        return self._hits_at_one / self.num_examples

    @property
    def perr(self) -> float:
        """Mean over examples of the precision of their G best classes, G the number of their labels.

        A class with probability 0 is no hit; an example without labels counts 0.
        """
        return self._precision_sum / self.num_examples

    @property
    def map(self) -> float:
        """Mean over the classes with a positive of the average precision of a class's kept pairs; 0 without labels."""
        if not self.num_positives.any():
            return 0.0
        scores, hits = np.concatenate(self._scores).ravel(), np.concatenate(self._hits).ravel()
        classes = np.concatenate(self._classes).ravel()
        order = descending_order(scores)
        order = order[np.argsort(classes[order], kind="stable")]
        precision = grouped_average_precision(classes[order], hits[order], self.num_positives)
        return float(precision[self.num_positives > 0].mean())


def best_classes(probabilities: np.ndarray, count: int) -> np.ndarray:
    """The `count` best classes of each row of [B, C], best first, ties by class: int64 [B, min(count, C)]."""
    num_classes = probabilities.shape[1]
    count = min(count, num_classes)
    if count < num_classes:  # sorting what is above the cut is much less than sorting everything
        cut = np.partition(probabilities, num_classes - count, axis=1)[:, num_classes - count, None]
        above, level = probabilities > cut, probabilities == cut
        room = count - above.sum(axis=1, keepdims=True)
        chosen = np.nonzero(above | (level & (np.cumsum(level, axis=1) <= room)))[1].reshape(-1, count)
    else:
        chosen = np.broadcast_to(np.arange(num_classes), probabilities.shape)
    order = np.argsort(-np.take_along_axis(probabilities, chosen, 1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def _metrics(probabilities: np.ndarray, labels: np.ndarray, top_k: int = 20) -> VideoMetrics:
    metrics = VideoMetrics(top_k)
    metrics.add(probabilities, labels)
    return metrics


def global_average_precision(probabilities: np.ndarray, labels: np.ndarray, top_k: int = 20) -> float:
    """GAP of probabilities [B, C] for labels [B, C]: see `VideoMetrics.gap`."""
    return _metrics(probabilities, labels, top_k).gap


def hit_at_one(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Hit@1 of probabilities [B, C] for labels [B, C]: see `VideoMetrics.hit_at_one`."""
    return _metrics(probabilities, labels).hit_at_one


def precision_at_equal_recall_rate(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """PERR of probabilities [B, C] for labels [B, C]: see `VideoMetrics.perr`."""
    return _metrics(probabilities, labels).perr
