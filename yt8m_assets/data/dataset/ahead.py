"""Fetching the shards of a bucket before they are needed, in the order in which they are.

What reads (a batch stream, a walk through all videos) knows which shards it will need, each from one position of its
way to another. The shards ahead are fetched to the machine's cache, as many as fit beside those that are in use. Each
process does so for its own way: of those that share a cache (ranks, runs, reader processes) one fetches a shard, the
others wait for it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from yt8m_assets.errors import PermanentError, StorageError
from yt8m_assets.storage.cache import CACHE_GB, ShardCache, touch
from yt8m_assets.storage.ranges import Stop, Stopped
from yt8m_assets.storage.remote import RemoteStat

NUM_SHARDS = 16
"""Shards that are fetched at the same time: many, for small ones are one request each."""
REACH_BYTES = 2**29
"""Fetched ahead of a walk through all shards: some shards, and more ranges than are in flight."""
_TOUCH_SECONDS = 5.0
_CLOSE_SECONDS = 5.0


class Source(NamedTuple):
    """A shard of a bucket."""

    uri: str
    size: int
    described: RemoteStat | None
    """What a listing said of it; None: the store is asked."""


class Need(NamedTuple):
    """A shard, by its number, is needed at positions `first` to `last` of the way."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class _Held:
    """A shard that was asked for."""

    first: int
    last: int
    path: Path | None = None
    failed: bool = False
    """Not fetched, and to be tried again by who waits for it."""
    lost: bool = False
    """Not to be had."""

    @property
    def pending(self) -> bool:
        """Whether it is being fetched."""
        return self.path is None and not self.failed and not self.lost


class ReadAhead:
    """Fetches what is needed next, by threads of this process, until it is closed.

    needs: of a part of the way, by rising `first`, and of the next part; may be endless. What the first part needs at a
    time must fit the cache: else waiting for it raises StorageError. reach: shards are fetched so many positions ahead;
    reach_bytes: or so many bytes of them; one of them in any case.
    """

    def __init__(
        self,
        copies: ShardCache,
        sources: Sequence[Source | None],
        needs: Iterator[Sequence[Need]],
        *,
        reach: int = 0,
        reach_bytes: int = 0,
    ) -> None:
        self._copies, self._sources, self._needs = copies, sources, needs
        self._is_planned = False
        self._fault: Exception | None = None
        self._reach, self._reach_bytes = reach, reach_bytes
        self._changed = threading.Condition()
        self._held: dict[int, _Held] = {}
        self._next: deque[Need] = deque()
        self._position = self._wanted = 0
        self._touched = time.monotonic()
        self._stop = Stop()
        self._threads = [
            threading.Thread(target=self._work, name="read ahead of shards", daemon=True) for _ in range(NUM_SHARDS)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, position: int, end: int) -> None:
        """Return when every shard that is needed at the positions [position, end) is here; the way goes on from there.

        What could not be fetched ahead is tried once more here. Raises TransientError where the store does not answer;
        what is wrong for good is left to who reads the shard, and says what it is about.
        """
        with self._changed:
            self._position, self._wanted = position, end
            if self._is_missing(end) or any(held.last < position for held in self._held.values()):
                self._changed.notify_all()
            while self._is_missing(end):
                self._changed.wait()
            failed = [s for s, held in self._held.items() if held.failed and held.first < end and held.last >= position]
        for shard in failed:
            path = None
            with suppress(PermanentError):
                path = self._fetch(shard)
            with self._changed:
                self._held[shard] = replace(self._held[shard], path=path, failed=False, lost=path is None)
        if time.monotonic() > self._touched + _TOUCH_SECONDS:
            self._touch()

    def _is_missing(self, end: int) -> bool:
        need = self._peek()
        waiting = any(held.pending and held.first < end and held.last >= self._position for held in self._held.values())
        return waiting or (need is not None and need.first < end)

    def close(self) -> None:
        """End the downloads that are under way."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        until = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:  # one that hangs in a request ends with it, and with the process
            thread.join(timeout=max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (shard := self._take()) is not None:
            try:
                path = self._fetch(shard)
            except Stopped:
                return
            except Exception:  # noqa: BLE001 - who waits for it tries again
                path = None
            with self._changed:
                self._held[shard] = replace(self._held[shard], path=path, failed=path is None)
                self._changed.notify_all()

    def _fetch(self, shard: int) -> Path:
        self._touch()
        source = self._sources[shard]
        assert source is not None
        return self._copies.get(source.uri, source.described, self._stop)

    def _touch(self) -> None:
        """See to it that what makes room for others is nothing in use."""
        with self._changed:
            self._touched = time.monotonic()
            paths = [held.path for held in self._held.values()]
        for path in paths:
            if path is not None:
                touch(path)

    def _take(self) -> int | None:
        """The next shard to fetch, as soon as it fits; None at the end."""
        with self._changed:
            while not self._stop.is_set():
                try:
                    need = self._peek()
                except Exception:  # noqa: BLE001 - who waits meets it, too
                    self._changed.notify_all()
                    return None
                if need is not None and self._fits(need):
                    self._next.popleft()
                    self._held[need.shard] = _Held(need.first, need.last)
                    return need.shard
                self._changed.wait()
            return None

    def _peek(self) -> Need | None:
        """The next need of a shard that is not held; those that are held stay for longer. None where there is none.

        Looks no further than it reaches: where all shards are held, the way may have no end.
        """
        if self._fault is not None:
            raise self._fault
        while True:
            if not self._next and not self._plan():
                return None
            need = self._next[0]
            held = self._held.get(need.shard)
            if held is None and self._sources[need.shard] is not None:
                return need
            if need.first > max(self._position + self._reach, self._wanted - 1):
                return None
            if held is not None:
                self._held[need.shard] = replace(held, last=max(held.last, need.last))
            self._next.popleft()

    def _plan(self) -> bool:
        """Look at the next part of the way; whether there is one."""
        try:
            if (needs := next(self._needs, None)) is None:
                return False
            if not self._is_planned:
                require_room(needs, self._sources, self._copies)
        except Exception as error:
            self._fault = error
            raise
        self._is_planned = True
        self._next.extend(needs)
        return True

    def _fits(self, need: Need) -> bool:
        """Whether a shard is within reach and fits beside those in use; one that is waited for is fetched anyway."""
        if need.first < self._wanted:
            return True
        for shard, held in list(self._held.items()):
            if held.last < self._position and not held.pending:
                del self._held[shard]
        size = self._size(need.shard)
        ahead = [self._size(shard) for shard, held in self._held.items() if held.first > self._position]
        near = need.first <= self._position + self._reach or not ahead or sum(ahead) + size <= self._reach_bytes
        return near and sum(map(self._size, self._held)) + size <= self._copies.max_bytes

    def _size(self, shard: int) -> int:
        source = self._sources[shard]
        return 0 if source is None else source.size


def shard_needs(shards: np.ndarray, offset: int = 0) -> list[Need]:
    """When each shard is needed on a way that needs `shards` (int [N]), one after another; positions from `offset`."""
    places = np.arange(len(shards))
    last = np.full(int(shards.max(initial=-1)) + 1, -1)
    last[shards] = places  # of several values the last one stays
    first = last.copy()
    first[shards[::-1]] = places[::-1]
    needed = np.flatnonzero(last >= 0)
    needed = needed[np.argsort(first[needed], kind="stable")]
    return [Need(int(s), int(first[s]) + offset, int(last[s]) + offset) for s in needed]


def require_room(needs: Iterable[Need], sources: Sequence[Source | None], copies: ShardCache) -> None:
    """Raise StorageError where a way needs more shards at a time than fit the cache: each would go before its use."""
    events: list[tuple[int, int]] = []
    for need in needs:
        if (source := sources[need.shard]) is not None:
            events += [(need.first, source.size), (need.last + 1, -source.size)]
    most = held = 0
    for _, size in sorted(events):
        held += size
        most = max(most, held)
    if most > copies.max_bytes:
        raise StorageError(
            f"{copies.path}: {most:,} bytes of shards are in use at a time, the cache holds {copies.max_bytes:,}; "
            f"enlarge it ({CACHE_GB}), or lower training.shuffle_buffer"
        )


class InShards(Protocol):
    """Videos that lie in shards, one shard after the other."""

    shard_sizes: np.ndarray

    def ahead(self, needs: Iterator[Sequence[Need]], *, reach: int = 0, reach_bytes: int = 0) -> ReadAhead | None: ...


def walk(videos: InShards) -> Iterator[int]:
    """The numbers of all videos in order, while the shards of the next ones are fetched."""
    ends = np.cumsum(videos.shard_sizes).tolist()
    filled = np.flatnonzero(videos.shard_sizes).tolist()
    ahead = videos.ahead(iter([[Need(shard, shard, shard) for shard in filled]]), reach_bytes=REACH_BYTES)
    try:
        for shard in filled:
            if ahead is not None:
                ahead.wait(shard, shard + 1)
            yield from range(ends[shard] - int(videos.shard_sizes[shard]), ends[shard])
    finally:
        if ahead is not None:
            ahead.close()
