"""Stable orders of scores: numpy sorts 16-bit keys by radix, which beats its comparison sort on wider ones."""

import numpy as np


def descending_order(scores: np.ndarray) -> np.ndarray:
    """Indices that sort finite float32 [n] from high to low, int64 [n]; equal scores keep their order."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0.0 and 0.0 are one score
    negative = bits >> np.uint32(31) == 1
    descending = np.where(negative, bits, ~bits & np.uint32(0x7FFFFFFF))
    return ascending_order(descending)


def ascending_order(keys: np.ndarray) -> np.ndarray:
    """Indices that sort uint32 [n] from low to high, int64 [n]; equal keys keep their order."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    high = (keys >> np.uint32(16)).astype(np.uint16)[order]
    return order[np.argsort(high, kind="stable")]
