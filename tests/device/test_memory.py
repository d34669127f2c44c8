"""The ways in which torch, CUDA's libraries and the operating system say that memory ran out, word for word."""

import errno

import pytest
import torch

from yt8m_assets.device.memory import explain_memory, is_out_of_memory

RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", RAN_OUT, ids=lambda error: str(error)[:40])
def test_memory_that_ran_out_is_recognised_also_as_a_cause(error: Exception) -> None:
    assert is_out_of_memory(error)
    wrapped = RuntimeError("the rank failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
        ValueError("a shape"),
        RuntimeError(),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    error.__cause__ = error  # a cycle ends, too
    assert not is_out_of_memory(error)


def test_a_real_failed_allocation() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("remedies", "advice"),
    [
        ([], "take a smaller model or a device with more memory"),
        (["lower a"], "lower a"),
        (["lower a", "raise b", "set c"], "lower a, raise b or set c"),
    ],
)
def test_the_explanation_names_what_can_help(remedies: list[str], advice: str) -> None:
    error = RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")
    assert str(explain_memory(error, "at 8", remedies)) == f"out of memory at 8 (CUDA error: out of memory): {advice}"
    assert str(explain_memory(MemoryError(), "at 8", remedies)) == f"out of memory at 8 (no detail): {advice}"
