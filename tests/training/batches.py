"""Batches for the tests of what works on them."""

import torch

from tests.training.support import NUM_CLASSES, RATED
from yt8m_assets.data.dataset.batches import Batch


def make_batches(num_segments: int = 23, size: int = 8) -> list[Batch]:
    """Batches of rated segments of random bytes: 8, 8 and 7."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for first in range(0, num_segments, size):
        count = min(size, num_segments - first)
        labels, weights = torch.zeros(count, NUM_CLASSES), torch.zeros(count, NUM_CLASSES)
        for row in range(count):
            for column in (RATED[(first + row) % 4], RATED[(first + row * 2) % 3]):
                weights[row, column] = 1
                labels[row, column] = float(torch.rand((), generator=generator) > 0.4)
        batches.append(
            Batch(
                frames=torch.randint(0, 256, (count, 5, 24), dtype=torch.uint8, generator=generator),
                valid=torch.ones(count, 5, dtype=torch.bool),
                num_frames=torch.full((count,), 5),
                labels=labels,
                label_weights=weights,
                video_ids=tuple(f"v{first + row:03d}" for row in range(count)),
                starts=torch.full((count,), 5),
            )
        )
    return batches


BATCHES = make_batches()
