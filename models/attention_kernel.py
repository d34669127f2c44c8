"""The GPU kernel of `short_attention`. Imported where Triton is: it comes with torch's builds for CUDA alone."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def attend(
    projected,
    context,
    scale,
    T: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One head of one window: all its queries at once, over its keys one by one with a running softmax."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    inside, wide = (rows < T) & (columns < D), columns < D
    first = projected + window * (T * 3 * N * D) + head * D
    query = tl.load(first + rows * (3 * N * D) + columns, mask=inside, other=0.0).to(tl.float32) * scale
    peak = tl.full([ROWS, 1], float("-inf"), tl.float32)
    total = tl.zeros([ROWS, 1], tl.float32)
    found = tl.zeros([ROWS, COLUMNS], tl.float32)
    for frame in tl.static_range(T):
        place = first + frame * (3 * N * D) + columns
        key = tl.load(place + N * D, mask=wide, other=0.0).to(tl.float32)
        value = tl.load(place + 2 * N * D, mask=wide, other=0.0).to(tl.float32)
        score = tl.sum(query * key, axis=1, keep_dims=True)
        higher = tl.maximum(peak, score)
        before, weight = tl.exp(peak - higher), tl.exp(score - higher)
        found, total, peak = found * before + weight * value, total * before + weight, higher
    target = context + (window * T + rows) * (N * D) + head * D + columns
    tl.store(target, (found / total).to(context.dtype.element_ty), mask=inside)


def launch(projected_BTP: Tensor, num_heads: int) -> Tensor:
    """Attention [B, T, H] of queries, keys and values side by side [B, T, 3H], contiguous; sums in float32."""
    batch, num_frames, width = projected_BTP.shape
    size = width // 3 // num_heads
    context_BTH = projected_BTP.new_empty(batch, num_frames, width // 3)
    rows, columns = triton.next_power_of_2(num_frames), triton.next_power_of_2(size)
    grid, warps = (batch, num_heads), max(1, rows * columns // 1024)
    shape = (num_frames, num_heads, size, rows, columns)
    attend[grid](projected_BTP, context_BTH, size**-0.5, *shape, num_warps=warps)
    return context_BTH
