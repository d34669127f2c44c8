"""The order of an epoch, made where it is looked at: millions of places take no memory, and the first is there at once.

What is drawn is what drawing the whole epoch at once with one generator would give, number for number.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any, overload

import numpy as np

_BLOCK = 2**16
_HELD_BLOCKS = 3


class _Lazy(ABC):
    """An array of N numbers that are made where they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> np.ndarray: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(self.size)
            assert step == 1, "the places of a slice follow each other"
            return self._between(start, max(stop, start))
        if not 0 <= place < self.size:
            raise IndexError(place)
        return self._at(int(place))

    @abstractmethod
    def _at(self, place: int) -> Any: ...

    @abstractmethod
    def _between(self, start: int, stop: int) -> np.ndarray: ...


class _Blocks(_Lazy):
    """Numbers that are made block by block; the blocks used last are held."""

    def __init__(self, size: int, dtype: Any) -> None:
        super().__init__(size)
        self.dtype = dtype
        self._blocks: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_blocks": OrderedDict()}

    def _blocks_between(self, number: int, start: int, stop: int) -> np.ndarray:
        """The numbers of [start, stop), from the blocks that begin with one at or before `start`."""
        found = [np.empty(0, self.dtype)]
        while start < stop:
            first, numbers = self._block(number)
            part = numbers[start - first : stop - first] if start < first + len(numbers) else numbers[:0]
            found.append(part)
            start, number = start + len(part), number + 1
        return np.concatenate(found)

    def _block(self, number: int) -> tuple[int, np.ndarray]:
        """The place of a block's first number, and its numbers."""
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = self._make(number)
            if len(self._blocks) > _HELD_BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return block

    @abstractmethod
    def _make(self, number: int) -> tuple[int, np.ndarray]: ...


class ShuffledOrder(_Blocks):
    """An epoch's order of all records, int64 [N]: shards in random order, then every record moved by up to `window`.

    So only the shards within a window are read at a time; a window of N or more gives a uniform permutation, which
    takes 8 N bytes. The generator is left as if it had drawn everything.
    """

    def __init__(self, shard_sizes: np.ndarray, window: int, generator: np.random.Generator) -> None:
        super().__init__(int(shard_sizes.sum()), np.int64)
        self._whole = generator.permutation(self.size) if window >= self.size else None
        if self._whole is not None:
            return
        self._window, self._step = window, max(_BLOCK, window + 2)
        shards = generator.permutation(len(shard_sizes))
        self._starts = np.concatenate([[0], np.cumsum(shard_sizes)])[shards]
        """int64 [M]: first record of each shard, in the order of the shards."""
        self._ends = np.cumsum(shard_sizes[shards])
        self._state = _after(generator, 0)
        generator.bit_generator.state = _after(generator, self.size)

    def _at(self, place: int) -> int:
        if self._whole is not None:
            return self._whole.item(place)
        number = place // self._step
        first, records = self._block(number)
        if place >= first + len(records):
            first, records = self._block(number + 1)
        return records.item(place - first)

    def _between(self, start: int, stop: int) -> np.ndarray:
        if self._whole is not None:
            return self._whole[start:stop]
        return self._blocks_between(start // self._step, start, stop)

    def _make(self, number: int) -> tuple[int, np.ndarray]:
        """The records whose keys lie in [number * step, (number + 1) * step); a record's key is its place, moved."""
        begin, end = number * self._step, (number + 1) * self._step
        low, high = max(begin - self._window - 1, 0), min(end, self.size)
        generator = np.random.Generator(np.random.PCG64())
        generator.bit_generator.state = self._state
        generator.bit_generator.state = _after(generator, low)
        keys = np.arange(low, high) + generator.random(high - low) * self._window
        chosen = np.flatnonzero((keys >= begin) & ((keys < end) | (high == self.size)))
        places = low + chosen[np.argsort(keys[chosen], kind="stable")]
        shard = np.searchsorted(self._ends, places, side="right")
        before = np.where(shard > 0, self._ends[shard - 1], 0)
        return low + int((keys < begin).sum()), self._starts[shard] + places - before


class Uniforms(_Blocks):
    """float32 [N]: uniform numbers, as `generator.random(N, dtype=float32)` would draw them."""

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        super().__init__(size, np.float32)
        self._state = _after(generator, 0)

    def _at(self, place: int) -> np.float32:
        first, numbers = self._block(place // _BLOCK)
        found: np.float32 = numbers[place - first]
        return found

    def _between(self, start: int, stop: int) -> np.ndarray:
        return self._blocks_between(start // _BLOCK, start, stop)

    def _make(self, number: int) -> tuple[int, np.ndarray]:
        begin, end = number * _BLOCK, min((number + 1) * _BLOCK, self.size)
        generator = np.random.Generator(np.random.PCG64())
        generator.bit_generator.state = self._state
        if begin == 0:
            return begin, generator.random(end, dtype=np.float32)
        fresh = begin - int(self._state["has_uint32"])  # two numbers a draw; one may have been left over before
        generator.bit_generator.state = _after(generator, fresh // 2, leave=False)
        return begin, generator.random(end - begin + fresh % 2, dtype=np.float32)[fresh % 2 :]


class SpreadOrder(_Lazy):
    """Which record each of an epoch's N * `windows` examples shows, int64: every record `windows` times.

    Blocks of at least `buffer` places of the order (all, where there are fewer) are passed `windows` times one after
    another, so windows of a video lie a block apart and a batch that is no larger holds no video twice.
    """

    def __init__(self, order: ShuffledOrder, windows: int, buffer: int) -> None:
        super().__init__(len(order) * windows)
        self.order, self.windows = order, windows
        self._num_blocks = max(len(order) // max(buffer, 1), 1)

    def _at(self, place: int) -> int:
        found: int = self._between(place, place + 1).item()
        return found

    def _between(self, start: int, stop: int) -> np.ndarray:
        places = self._places(np.arange(start, stop))
        low = int(places.min()) if len(places) else 0
        return self.order[low : int(places.max()) + 1 if len(places) else 0][places - low]

    def _places(self, examples: np.ndarray) -> np.ndarray:
        """Which place of the order each example shows, int64 [n]."""
        small, num_larger = divmod(len(self.order), self._num_blocks)
        in_larger = num_larger * (small + 1)
        larger = examples < in_larger * self.windows
        size, first = np.where(larger, small + 1, small), np.where(larger, 0, in_larger)
        block, within = np.divmod(examples - first * self.windows, size * self.windows)
        found: np.ndarray = first + block * size + within % size
        return found


def _after(generator: np.random.Generator, draws: int, leave: bool = True) -> Any:
    """The state after so many 64-bit draws; a 32-bit half that was left over stays left over, or is dropped."""
    before: Any = generator.bit_generator.state
    ahead: Any = np.random.PCG64()
    ahead.state = before
    state = ahead.advance(draws).state if draws else before
    kept = {name: before[name] if leave else 0 for name in ("has_uint32", "uinteger")}
    return {**state, **kept}
