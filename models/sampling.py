"""Which frames of a video a model looks at (SPEC section 2), and how often.

B batch, T frames, N drawn frames, F features.
"""

import torch
from torch import Tensor


def draw_uniform(num_rows: int, num_columns: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw [num_rows, num_columns] float32 in [0, 1) from the generator (on its own device), or torch's default."""
    source = device if generator is None else generator.device
    return torch.rand(num_rows, num_columns, generator=generator, device=source).to(device)


def random_frames(uniform_BN: Tensor, num_frames_B: Tensor) -> Tensor:
    """Draw frames with replacement: `int(u * num_frames)`. Returns int64 [B, N]."""
    index_BN = (uniform_BN * num_frames_B[:, None].to(uniform_BN.dtype)).long()
    return torch.minimum(index_BN, (num_frames_B[:, None].long() - 1).clamp(min=0))


def random_sequence(uniform_B1: Tensor, num_frames_B: Tensor, length: int) -> Tensor:
    """Draw `length` consecutive frames; a shorter video repeats its last one. Returns int64 [B, length]."""
    num_frames_B1 = num_frames_B[:, None].long()
    num_starts_B1 = (num_frames_B1 - length).clamp(min=0) + 1
    start_B1 = (uniform_B1 * num_starts_B1.to(uniform_B1.dtype)).long()
    index_BN = start_B1 + torch.arange(length, device=uniform_B1.device)
    return torch.minimum(index_BN, (num_frames_B1 - 1).clamp(min=0))


def evenly_spaced(num_frames_B: Tensor, num_sampled: int) -> Tensor:
    """Spread the draws evenly in time order: `floor(j * num_frames / N)`. Returns int64 [B, N]."""
    steps_N = torch.arange(num_sampled, device=num_frames_B.device)
    return steps_N * num_frames_B[:, None].long() // num_sampled


def gather_frames(frames_BTF: Tensor, index_BN: Tensor) -> Tensor:
    """Pick whole frames by position. Returns [B, N, F]."""
    return frames_BTF.gather(1, index_BN[:, :, None].expand(-1, -1, frames_BTF.shape[2]))


def distinct_frames(frames_BTF: Tensor, index_BN: Tensor) -> tuple[Tensor, Tensor | None]:
    """Turn draws with repetition into frames to compute and the number of times each counts.

    A sum over the drawn frames equals the sum over all frames weighted by how often each was drawn. With no more frames
    than draws it is cheaper to compute every frame once: returns frames_BTF itself and float32 counts [B, T], which sum
    to N in every row. Otherwise returns the drawn frames [B, N, F] and None, each counting once.
    """
    batch_size, num_frames = frames_BTF.shape[:2]
    if num_frames > index_BN.shape[1]:
        return gather_frames(frames_BTF, index_BN), None
    counts_BT = frames_BTF.new_zeros(batch_size, num_frames, dtype=torch.float32)
    return frames_BTF, counts_BT.scatter_add(1, index_BN, torch.ones_like(index_BN, dtype=torch.float32))
