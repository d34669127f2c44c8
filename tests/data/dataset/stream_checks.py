"""What every restartable stream must do, for any test to use."""

import itertools
from collections.abc import Callable
from typing import Any

import torch

from yt8m_assets.data.dataset.batches import Batch, BatchStream


def same_batch(left: Batch, right: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    for name in left.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a, b):
                return False
        elif a != b:
            return False
    return True


def take(stream: BatchStream, count: int) -> list[Batch]:
    """The next batches."""
    return list(itertools.islice(iter(stream), count))


def check_restores_everywhere(make: Callable[[], BatchStream], num_batches: int) -> None:
    """Stop after every number of batches, restore into a new stream, and compare all that follows."""
    whole = take(make(), num_batches)
    states: list[dict[str, Any]] = []
    stream = make()
    states.append(stream.state_dict())
    for batch, _ in zip(stream, range(num_batches), strict=False):
        states.append(stream.state_dict())
        assert batch is not None
        if len(states) > num_batches:
            break
    for position, state in enumerate(states[:num_batches]):
        restored = make()
        restored.load_state_dict(state)
        rest = take(restored, num_batches - position)
        assert all(same_batch(*pair) for pair in zip(rest, whole[position:], strict=True)), position
