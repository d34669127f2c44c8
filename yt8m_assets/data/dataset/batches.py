"""Endless, restartable streams of batches.

Everything a stream yields is a pure function of its seed and of a position, counted in examples over all epochs and
ranks. So a state is one number, any number of workers gives the same batches, and ranks never share an example.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.data.dataset.ahead import ReadAhead
from yt8m_assets.data.dataset.loading import iterate_batches
from yt8m_assets.data.dataset.views import Look, Place, View
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
    frame_index: "torch.Tensor | None" = None
    """int64 [B, N]: the rows that the model looks at, with repetition; None: the model's own rule."""

    def __len__(self) -> int:
        return len(self.video_ids)

    def rows(self, rows: slice) -> "Batch":
        """Some of its examples."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        kept: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return Batch(**kept)

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where it is copied to a GPU in the background."""
        return _mapped(self, lambda tensor: tensor.pin_memory())


SEEN = ("valid", "num_frames", "starts", "frame_index")
"""What of a batch each view has of its own, beside the frames."""


@dataclass(frozen=True, eq=False)
class Part:
    """What one of several views takes of a batch."""

    valid: "torch.Tensor"
    num_frames: "torch.Tensor"
    starts: "torch.Tensor"
    frame_index: "torch.Tensor | None"
    place: "torch.Tensor | slice | None"
    """Where its frames are among those of all views: rows int64 [B, N], columns, or None for all of them."""

    @classmethod
    def of(cls, look: Look, place: Place) -> "Part":
        """The tensors of a look."""
        import torch

        def tensor(array: Any) -> Any:
            return torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array

        own = {name: tensor(getattr(look, name)) for name in SEEN}
        return cls(**own, place=tensor(place))

    def take(self, batch: Batch) -> Batch:
        """The view's own batch, as a reader of this view alone would give it; frames are taken where they are."""
        import torch

        frames = batch.frames
        if isinstance(self.place, slice):
            frames = frames[:, self.place].contiguous()
        elif self.place is not None:
            first = frames.shape[1] * torch.arange(len(frames), device=frames.device)
            rows = (first[:, None] + self.place).flatten()
            frames = frames.flatten(0, 1).index_select(0, rows).unflatten(0, self.place.shape)
        return replace(batch, frames=frames, **{name: getattr(self, name) for name in SEEN})


@dataclass(frozen=True, eq=False)
class JointBatch:
    """Examples as several views need them: each frame once, and the part of each view."""

    batch: Batch
    """Frames uint8 [B, R, F] of all views; its `valid` and the like are those of the first."""
    parts: tuple[Part, ...]
    """Of each view, in their order."""

    def to(self, device: "torch.device | str", non_blocking: bool = False) -> "JointBatch":
        """The same batch on a device."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "JointBatch":
        """The same batch in page-locked memory."""
        return _mapped(self, lambda tensor: tensor.pin_memory())


def _mapped(value: Any, change: Any) -> Any:
    """A batch, or a part of one, with every tensor changed."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _mapped(getattr(value, field.name), change) for field in fields(value)})
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    return change(value) if hasattr(value, "dtype") else value


class BatchStream(ABC):
    """An endless iterable over shuffled epochs with `state_dict` / `load_state_dict`.

    Ranks: the global stream is cut into rounds of num_ranks * batch_size examples, of which each rank takes its part;
    every example comes exactly once an epoch, and a batch may end one epoch and begin the next.
    """

    def __init__(
        self,
        *,
        num_examples: int,
        batch_size: int,
        seed: int,
        rank: int,
        num_ranks: int,
        num_workers: int,
        pin: bool,
        views: tuple[View, ...],
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        if not 0 <= rank < num_ranks:
            raise ConfigError(f"rank = {rank}: must lie in 0..{num_ranks - 1} (num_ranks = {num_ranks})")
        if num_examples < 1:
            raise ConfigError(f"num_examples = {num_examples}: the shards hold nothing to train on")
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self.rank, self.num_ranks, self.num_workers, self.pin_memory = rank, num_ranks, num_workers, pin
        self.views = views
        self.position = 0
        """Examples yielded so far, over all ranks."""
        self._epochs: dict[int, Any] = {}

    @abstractmethod
    def plan_epoch(self, generator: np.random.Generator) -> Any:
        """Draw an epoch: whatever `make_batch` needs, the same for every rank and worker."""

    @abstractmethod
    def make_batch(self, entries: list[tuple[Any, int]], uniforms: np.ndarray) -> Batch | JointBatch:
        """The batch of (plan, number within the epoch) pairs, and the views' uniform numbers, float32 [M, B]."""

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

    def batch_at(self, position: int) -> Any:
        """This rank's Batch of the round that starts at a global position; a JointBatch for several views."""
        first = position + self.rank * self.batch_size
        places = [divmod(place, self.num_examples) for place in range(first, first + self.batch_size)]
        own = slice(first - position, first - position + self.batch_size)
        entries = [(self._plan(epoch), number) for epoch, number in places]
        return self.make_batch(entries, self._uniforms(position)[:, own])

    def _uniforms(self, position: int) -> np.ndarray:
        """float32 [M, stride]: what the views draw with in a round; the first rows are the same for any M."""
        number = max((view.num_uniforms for view in self.views), default=0)
        generator = np.random.default_rng([self.seed, position, 1])
        return generator.random((number, self.stride), dtype=np.float32)

    def joined(self, others: Sequence["BatchStream"]) -> "BatchStream":
        """A stream at the same position that reads for all the streams: they differ in nothing but their views."""
        joint = copy.copy(self)
        joint.views = tuple(dict.fromkeys(view for stream in (self, *others) for view in stream.views))
        joint._epochs = dict(self._epochs)
        return joint

    def ahead(self) -> ReadAhead | None:
        """Fetching its shards before they are needed, from its position on; None where there is nothing to fetch."""
        return None

    def _plan(self, epoch: int) -> Any:
        if epoch not in self._epochs:
            for old in [known for known in self._epochs if known < epoch - 1 or known > epoch + 1]:
                del self._epochs[old]
            self._epochs[epoch] = self.plan_epoch(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def __iter__(self) -> Iterator[Any]:
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
