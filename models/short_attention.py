"""Attention over a window's few frames at inference on a GPU, in one small kernel.

A flash kernel works on tiles of 64 queries by 128 keys, whatever it is given: over five frames it computes some three
hundred times what is asked. (H100, 8192 windows of 12 heads of 96, bfloat16: 2.1 ms; here 0.27.)

Shape letters: B windows, T frames, N heads, D width of a head, H = ND, P = 3H queries, keys and values side by side.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

logger = logging.getLogger(__name__)

MAX_FRAMES = 8
"""Longest window that this is for; a flash kernel's tiles fill with more."""


def attention(projected_BTP: Tensor, num_heads: int, mask_B11T: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention [B, T, H] of queries, keys and values [B, T, P], by torch; mask as in `EncoderLayer`."""
    query_BNTD, key_BNTD, value_BNTD = (
        part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in projected_BTP.chunk(3, dim=2)
    )
    context_BNTD = F.scaled_dot_product_attention(
        query_BNTD, key_BNTD, value_BNTD, attn_mask=mask_B11T, dropout_p=dropout
    )
    return context_BNTD.transpose(1, 2).flatten(2)


def is_short(projected_BTP: Tensor) -> bool:
    """Whether `short_attention` is for this: some frames of many windows on a GPU, and no gradient."""
    return projected_BTP.is_cuda and projected_BTP.shape[1] <= MAX_FRAMES and not torch.is_grad_enabled()


@torch.library.custom_op("yt8m::short_attention", mutates_args=())
def short_attention(projected_BTP: Tensor, num_heads: int) -> Tensor:
    """`attention` without mask and dropout, by the kernel where it can be built (a compiler is there, and Triton)."""
    if kernel.works:
        try:
            return kernel.launch(projected_BTP.contiguous(), num_heads)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a compiler says, torch's own attention does the same
            kernel.give_up(error)
    return attention(projected_BTP, num_heads).contiguous()


@short_attention.register_fake
def _shape_of(projected_BTP: Tensor, num_heads: int) -> Tensor:
    batch, num_frames, width = projected_BTP.shape
    return projected_BTP.new_empty(batch, num_frames, width // 3)


class _Kernel:
    """The kernel, imported when it is first needed, until it fails."""

    works = True

    def launch(self, *arguments: Any) -> Tensor:
        from models import attention_kernel

        return attention_kernel.launch(*arguments)

    def give_up(self, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [""]
        logger.warning("attention goes on without its kernel: %s: %s", type(error).__name__, lines[0])
        self.works = False


kernel = _Kernel()
