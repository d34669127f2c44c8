"""Stable orders of scores: numpy sorts 16-bit keys by radix, which beats its comparison sort on wider ones."""

import numpy as np

_SMALL = 1024
"""Below this many numbers the passes cost more than they save."""


def descending_order(scores: np.ndarray) -> np.ndarray:
    """Indices that sort finite floats [n] (32 or 64 bits) from high to low, int64 [n]; equal ones keep their order."""
    scores = np.asarray(scores)
    if scores.size < _SMALL or scores.dtype not in (np.float32, np.float64):
        return np.argsort(-scores.astype(np.float64, copy=False), kind="stable")
    if scores.dtype == np.float32:
        return _descending_bits(scores)
    # Rounding keeps the order: sort 32 bits in half the passes, then put right what they cannot tell apart.
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32)
    order = _descending_bits(single)
    rounded = single[order]
    same = rounded[1:] == rounded[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if tied.size > scores.size // 4:
        return _descending_bits(scores)
    run = np.cumsum(np.append(True, ~same))[tied]
    members = order[tied]
    order[tied] = members[np.lexsort((members, -scores[members], run))]
    return order


def _descending_bits(scores: np.ndarray) -> np.ndarray:
    """The order by the scores' bits, made to sort as unsigned numbers."""
    unsigned = np.dtype(f"u{scores.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    bits = (scores + scores.dtype.type(0)).view(unsigned)  # -0.0 and 0.0 are one score
    return ascending_order(np.where(bits & sign, bits, ~bits & ~sign))


def ascending_order(keys: np.ndarray) -> np.ndarray:
    """Indices that sort unsigned integers [n] (32 or 64 bits) from low to high, int64 [n]; equal ones keep order."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(16, 8 * keys.itemsize, 16):
        digits = (keys >> keys.dtype.type(shift)).astype(np.uint16)
        order = order[np.argsort(digits[order], kind="stable")]
    return order
