"""Endless, restartable streams of batches.

Everything a stream yields is a pure function of its seed and of a position, counted in examples over all epochs and
ranks. So a state is one number, any number of workers gives the same batches, and ranks never share an example.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.data.dataset.loading import iterate_batches
from yt8m_assets.errors import CheckpointMismatchError, ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples of T rows (seconds), F bytes a row, C classes. Tensors; uint8 until they are on the device."""

    frames: "torch.Tensor"
    """uint8 [B, T, F]: quantised features; 0 where not valid."""
    valid: "torch.Tensor"
    """bool [B, T]: false for rows that are padding and must become zero features."""
    num_frames: "torch.Tensor"
    """int64 [B]: what the models get as `num_frames`."""
    labels: "torch.Tensor"
    """float32 [B, C]: 1 where the class is present."""
    label_weights: "torch.Tensor | None"
    """float32 [B, C]: 1 where the class was rated; None for video labels."""
    video_ids: tuple[str, ...]
    """Id of each example's video."""
    starts: "torch.Tensor"
    """int64 [B]: the second at which the window starts."""

    def __len__(self) -> int:
        return len(self.video_ids)

    def _map(self, change: Any) -> "Batch":
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Batch(**{name: change(v) if hasattr(v, "dtype") else v for name, v in values.items()})

    def rows(self, rows: slice) -> "Batch":
        """Some of its examples."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        kept: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return Batch(**kept)

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where it is copied to a GPU in the background."""
        return self._map(lambda tensor: tensor.pin_memory())


def shuffled_order(shard_sizes: np.ndarray, window: int, generator: np.random.Generator) -> np.ndarray:
    """An epoch's order of all records, int64 [N]: shards in random order, then every record moved by up to `window`.

    So only the shards within a window are read at a time; a window of N or more gives a uniform permutation.
    """
    num_records = int(shard_sizes.sum())
    if window >= num_records:
        return generator.permutation(num_records)
    first = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = generator.permutation(len(shard_sizes))
    order = np.concatenate([np.arange(first[shard], first[shard + 1]) for shard in shards])
    keys = np.arange(num_records) + generator.random(num_records) * window
    return order[np.argsort(keys, kind="stable")]


def spread_windows(num_videos: int, windows: int, buffer: int) -> np.ndarray:
    """Which place of an epoch's order each of its examples shows, int64 [num_videos * windows].

    Blocks of at least `buffer` places (all, where there are fewer) are passed `windows` times one after another, so
    windows of a video lie a block apart and a batch that is no larger holds no video twice.
    """
    num_blocks = max(num_videos // max(buffer, 1), 1)
    blocks = np.array_split(np.arange(num_videos), num_blocks)
    return np.concatenate([np.tile(block, windows) for block in blocks])


class BatchStream(ABC):
    """An endless iterable over shuffled epochs with `state_dict` / `load_state_dict`.

    Ranks: the global stream is cut into rounds of num_ranks * batch_size examples, of which each rank takes its part;
    every example comes exactly once an epoch, and a batch may end one epoch and begin the next.
    """

    def __init__(
        self, *, num_examples: int, batch_size: int, seed: int, rank: int, num_ranks: int, num_workers: int, pin: bool
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        if not 0 <= rank < num_ranks:
            raise ConfigError(f"rank = {rank}: must lie in 0..{num_ranks - 1} (num_ranks = {num_ranks})")
        if num_examples < 1:
            raise ConfigError(f"num_examples = {num_examples}: the shards hold nothing to train on")
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self.rank, self.num_ranks, self.num_workers, self.pin_memory = rank, num_ranks, num_workers, pin
        self.position = 0
        """Examples yielded so far, over all ranks."""
        self._epochs: dict[int, Any] = {}

    @abstractmethod
    def plan_epoch(self, generator: np.random.Generator) -> Any:
        """Draw an epoch: whatever `make_batch` needs, the same for every rank and worker."""

    @abstractmethod
    def make_batch(self, entries: list[tuple[Any, int]]) -> Batch:
        """The batch of (plan, number within the epoch) pairs."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the stream: a state fits only a stream with equal values."""

    @property
    def epoch(self) -> int:
        """The epoch of the next example, from 0."""
        return self.position // self.num_examples

    @property
    def stride(self) -> int:
        """Examples that all ranks take together per batch."""
        return self.batch_size * self.num_ranks

    def batch_at(self, position: int) -> Batch:
        """This rank's batch of the round that starts at a global position."""
        first = position + self.rank * self.batch_size
        places = [divmod(place, self.num_examples) for place in range(first, first + self.batch_size)]
        return self.make_batch([(self._plan(epoch), number) for epoch, number in places])

    def _plan(self, epoch: int) -> Any:
        if epoch not in self._epochs:
            for old in [known for known in self._epochs if known < epoch - 1 or known > epoch + 1]:
                del self._epochs[old]
            self._epochs[epoch] = self.plan_epoch(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def __iter__(self) -> Iterator[Batch]:
        return iterate_batches(self)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as JSON values: valid between any two batches."""
        return {"position": self.position, "identity": self.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises CheckpointMismatchError naming the fields that differ."""
        mine, theirs = self.identity(), state["identity"]
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        if differing:
            shown = ", ".join(f"{name} was {theirs.get(name)!r}, is {mine.get(name)!r}" for name in sorted(differing))
            raise CheckpointMismatchError(f"the saved position belongs to other data or settings: {shown}")
        self.position = int(state["position"])


def multi_hot(rows: list[np.ndarray], values: list[np.ndarray] | None, num_classes: int) -> np.ndarray:
    """float32 [B, C]: `values` (1 by default) scattered at each row's classes."""
    dense = np.zeros((len(rows), num_classes), np.float32)
    for number, classes in enumerate(rows):
        dense[number, classes] = 1.0 if values is None else values[number]
    return dense
