"""Stable orders of scores, several times as fast as numpy's stable sort on long lists.

Singles are packed with their place into 64-bit integers, which numpy sorts with vector instructions. Doubles are sorted
by the fast sort that is not stable, and equal ones put right afterwards. Integers go by radix, 16 bits at a time.
"""

import numpy as np

_SMALL = 1024
"""Below this many numbers the passes cost more than they save."""


def descending_order(scores: np.ndarray) -> np.ndarray:
    """Indices that sort finite floats [n] (32 or 64 bits) from high to low, int64 [n]; equal ones keep their order."""
    scores = np.asarray(scores)
    if scores.size < _SMALL or scores.dtype not in (np.float32, np.float64):
        return np.argsort(-scores.astype(np.float64, copy=False), kind="stable")
    if scores.dtype == np.float32:
        return _packed_order(scores)
    order = np.argsort(-scores)
    ordered = scores[order]
    same = ordered[1:] == ordered[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if tied.size > scores.size // 4:
        return ascending_order(_ascending_bits(scores))
    members = order[tied]
    order[tied] = members[np.lexsort((members, np.cumsum(np.append(True, ~same))[tied]))]
    return order


def _packed_order(scores: np.ndarray) -> np.ndarray:
    """The order of singles: by their bits, then by place."""
    keys = _ascending_bits(scores).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(scores.size, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _ascending_bits(scores: np.ndarray) -> np.ndarray:
    """The scores' bits as unsigned numbers that ascend where the scores descend."""
    unsigned = np.dtype(f"u{scores.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    bits = (scores + scores.dtype.type(0)).view(unsigned)  # -0.0 and 0.0 are one score
    return np.where(bits & sign, bits, ~bits & ~sign)


def ascending_order(keys: np.ndarray) -> np.ndarray:
    """Indices that sort unsigned integers [n] (32 or 64 bits) from low to high, int64 [n]; equal ones keep order."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, 8 * keys.itemsize, 16):
        digits = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
