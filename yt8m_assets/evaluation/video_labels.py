"""Metrics of video-level classification: GAP@20, Hit@1 and PERR (SPEC section 9)."""

import numpy as np

from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.average_precision import average_precision


def global_average_precision(probabilities: np.ndarray, labels: np.ndarray, top_k: int = 20) -> float:
    """GAP: the average precision of every example's top_k (score, label) pairs in one pool.

    Arguments: probabilities [B, C], labels [B, C] (0 or 1). The positives are those of all classes, top_k or not.
    Ties at an example's cut go to the smaller class, in the pool to the earlier example.
    """
    probabilities, labels = _matrices(probabilities, labels)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    scores, hits = np.take_along_axis(probabilities, best, 1), np.take_along_axis(labels, best, 1)
    return average_precision(scores.ravel(), hits.ravel(), num_positives=float(labels.sum()))


def hit_at_one(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples [B, C] whose best class is among their labels."""
    probabilities, labels = _matrices(probabilities, labels)
    best = np.argmax(probabilities, axis=1)
    return float(np.mean(labels[np.arange(len(labels)), best]))


def precision_at_equal_recall_rate(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """PERR: mean over examples [B, C] of the precision of their G best classes, G the number of their labels.

    A class with probability 0 is no hit; an example without labels counts 0. Ties go to the smaller class.
    """
    probabilities, labels = _matrices(probabilities, labels)
    num_labels = labels.sum(axis=1).astype(np.int64)
    best = np.argsort(-probabilities, axis=1, kind="stable")
    scores, hits = np.take_along_axis(probabilities, best, 1), np.take_along_axis(labels, best, 1)
    counted = (np.arange(labels.shape[1]) < num_labels[:, None]) & (scores > 0)
    return float(np.mean((hits * counted).sum(axis=1) / np.maximum(num_labels, 1)))


def _matrices(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities), np.asarray(labels, np.float64)
    if probabilities.shape != labels.shape or probabilities.ndim != 2 or not probabilities.size:
        raise DataError(f"probabilities of shape {probabilities.shape} for labels of shape {labels.shape}: need [B, C]")
    return probabilities, labels
