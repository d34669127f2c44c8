"""The C library's memory for large tensors: kept between the steps of a training, not given back and faulted in anew.

Gradients and temporaries of hundreds of megabytes come and go at every step. By default each is a map of its own whose
pages the kernel zeroes at first touch, every time: a fifth of the processor time of a training step. On a GPU torch
keeps its memory by itself.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Names of mallopt(3)."""
_NEVER = 2**31 - 1
_LARGEST_THRESHOLD = 32 * 2**20
"""What glibc's own adjusting would arrive at; it ends with the first call of mallopt."""


@contextmanager
def kept_pages(enabled: bool = True) -> Iterator[None]:
    """Keep freed memory in this process inside the block, for its next tensors; at the end it goes back to the system.

    Does nothing where the C library is not glibc.
    """
    libc: Any = ctypes.CDLL(None)
    if not enabled or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        libc.mallopt(_MMAP_MAX, 65536)
        libc.malloc_trim(0)
