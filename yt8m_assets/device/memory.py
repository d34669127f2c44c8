"""How much memory a process may still take, and which errors mean that it ran out, on a GPU or on the host."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from yt8m_assets.errors import OutOfMemoryError

if TYPE_CHECKING:
    import torch

CGROUP = Path("/sys/fs/cgroup")
"""The memory controller of this process's container: version 2, or version 1 below `memory`."""
_SAYINGS = (
    "out of memory",  # torch, CUDA ("CUDA error: out of memory"), NCCL, HIP
    "_alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED and their sisters
    "can't allocate memory",  # torch's allocator on a CPU
    "cannot allocate memory",  # the operating system: ENOMEM
    "not enough memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        named = isinstance(found, MemoryError) or type(found).__name__ == "OutOfMemoryError"
        if named or any(saying in str(found).lower() for saying in _SAYINGS):
            return True
        found = found.__cause__
    return False


def explain_memory(error: BaseException, what: str, remedies: Sequence[str]) -> OutOfMemoryError:
    """The error that says what was too much, and which settings can help; without any, a device with more memory."""
    *others, last = remedies or ["take a smaller model or a device with more memory"]
    advice = f"{', '.join(others)} or {last}" if others else last
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no detail"
    return OutOfMemoryError(f"out of memory {what} ({reason}): {advice}")


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Bytes that the machine has left, or the container where its limit leaves less."""
    free = psutil.virtual_memory().available
    for limit, used, statistics, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            allowed, taken = (int((cgroup / name).read_text()) for name in (limit, used))
            kinds = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
        except (OSError, ValueError):  # no such controller, or "max": no limit
            continue
        free = min(free, allowed - taken + int(kinds.get(cached, 0)))  # copies of files give way
    return max(free, 0)


def free_gpu_bytes(device: "torch.device") -> int:
    """Bytes that a GPU has left, with what this process has used of it before and keeps for its next tensors."""
    import torch

    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
