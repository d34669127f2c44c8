"""The index of many shards, of which a process holds the parts that it uses."""

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np

from yt8m_assets.data.dataset.index import NOT_LOCATED, ShardIndex
from yt8m_assets.data.dataset.packed import PackedShard
from yt8m_assets.data.records.examples import FEATURE_NAMES
from yt8m_assets.data.records.framing import HEADER_BYTES
from yt8m_assets.data.records.wire import frame_header

_HELD_PARTS = 128
"""Shards whose part of the index is in memory: 0.1 MB each."""


@dataclass(frozen=True, eq=False)
class Part:
    """A shard's part of the index, in memory: n videos."""

    index: ShardIndex
    """What is known of them."""
    located: np.ndarray
    """bool [n]: whether each record's encoding is the canonical one."""
    lists: list[tuple[np.ndarray, int, bytes]]
    """Of each feature: the byte of the shard at which each video's list starts (int64 [n]), size, a frame's header."""

    @classmethod
    def of(cls, index: ShardIndex) -> "Part":
        """The part that an index is."""
        records = index.records
        data = records["offset"].astype(np.int64) + HEADER_BYTES
        named = zip(FEATURE_NAMES, index.feature_sizes, strict=True)
        lists = [(data + records[f"{name}_start"], size, frame_header(size)) for name, size in named if size]
        return cls(index, records["rgb_start"] != NOT_LOCATED, lists)


class IndexParts:
    """N videos of M indexed shards, numbered in shard order. Sent to another process, it reads its parts anew."""

    def __init__(self, indices: Sequence[ShardIndex | PackedShard]) -> None:
        self.indices = list(indices)
        self.sizes = np.array([len(index) for index in self.indices], np.int64)
        """int64 [M]: videos in each shard."""
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])
        """int64 [M + 1]: number of each shard's first video."""
        self._held: OrderedDict[int, Part] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_held": OrderedDict()}

    def __len__(self) -> int:
        return self.first.item(-1)

    def __getitem__(self, shard: int) -> Part:
        """The part of a shard."""
        part = self._held.get(shard)
        if part is None:
            part = self._held[shard] = Part.of(self.indices[shard].load())
            if len(self._held) > _HELD_PARTS:
                self._held.popitem(last=False)
        else:
            self._held.move_to_end(shard)
        return part

    def locate(self, number: int) -> tuple[int, int]:
        """Shard of a video, and its row there."""
        shard = int(self.first.searchsorted(number, side="right")) - 1
        return shard, number - self.first.item(shard)

    def num_frames(self, max_frames: int) -> np.ndarray:
        """int32 [N]: frames of each video, at most `max_frames`."""
        found = np.empty(len(self), np.int32)
        for shard, index in enumerate(self.indices):
            found[self.first[shard] : self.first[shard + 1]] = np.minimum(index.num_frames(), max_frames)
        return found

    def ids_by_shard(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each shard with the ids of its videos, S11 [n]."""
        for shard, index in enumerate(self.indices):
            yield index.uri, (self._held[shard].index if shard in self._held else index.load()).ids


class VideoIds(Sequence[str]):
    """The ids of the videos as text, each made when it is asked for."""

    def __init__(self, parts: IndexParts) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]  # counts from the end, or raises IndexError
        shard, row = self.parts.locate(number)
        return bytes(self.parts[shard].index.ids[row]).decode()

    def __iter__(self) -> Iterator[str]:
        for _, ids in self.parts.ids_by_shard():
            yield from (name.decode() for name in ids.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Named(Protocol):
    """Videos as far as names and lengths go (see `Videos`)."""

    video_ids: Sequence[str]
    num_frames: np.ndarray
    shard_uris: list[str]
    shard_sizes: np.ndarray


def ids_by_shard(videos: Named) -> Iterator[tuple[str, np.ndarray]]:
    """Each shard with the ids of its videos, S11 [n]."""
    if isinstance(videos.video_ids, VideoIds):
        yield from videos.video_ids.parts.ids_by_shard()
        return
    ends = np.cumsum(videos.shard_sizes).tolist()
    for uri, start, end in zip(videos.shard_uris, [0, *ends], ends, strict=False):
        yield uri, np.array(videos.video_ids[start:end], "S11")


def content_checksum(videos: Named) -> int:
    """crc32 of the videos' lengths (int64) and of their ids, a line each: what tells one set of videos from another."""
    crc, between, chunk = 0, b"", 2**16
    for first in range(0, len(videos.num_frames), chunk):
        crc = zlib.crc32(videos.num_frames[first : first + chunk].astype(np.int64).tobytes(), crc)
    for _, ids in ids_by_shard(videos):
        if len(ids):
            crc, between = zlib.crc32(between + b"\n".join(ids.tolist()), crc), b"\n"
    return crc
