"""Indexing many shards: what is known is taken, the rest is read in processes, and each finished shard is kept."""

import logging
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import MappingProxyType
from typing import Any

import numpy as np

from yt8m_assets.data.dataset.index import ShardIndex, build_index
from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.dataset.shards import Listed, ShardInfo, look_at
from yt8m_assets.data.dataset.shelf import IndexShelf
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.errors import DataError, WorkerCrashError
from yt8m_assets.progress import NullProgress, Progress

logger = logging.getLogger(__name__)
PARALLEL_BYTES = 2**30
"""Below this much data, processes cost more than they save."""
_MEGABYTE = 10**6


def scan_shards(
    shards: Sequence[str] | Mapping[str, Listed],
    reading: Reading = RELEASED,
    *,
    known: Mapping[str, ShardIndex] = MappingProxyType({}),
    shelf: IndexShelf | None = None,
    report: ReadReport | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> list[ShardIndex]:
    """The index of every shard, in the order given (URIs, or what a listing said of each).

    known: URI -> index of those that need not be read; shelf: where what is finished is kept, and found after a pass
    that was killed. num_workers: processes; None chooses one a core for a gigabyte or more (two a core from a bucket,
    where half of them wait), 0 reads in this process. Raises what reading raises; DataError when there are shards and
    all are empty.
    """
    report = reading.new_report() if report is None else report
    listing = shards if isinstance(shards, Mapping) else {uri: look_at(uri) for uri in shards}
    found = dict(known)
    pending = {uri: listed for uri, listed in listing.items() if uri not in found}
    if shelf is not None and pending:
        found |= shelf.find(pending, reading)
        pending = {uri: listed for uri, listed in pending.items() if uri not in found}
    if num_workers is None:
        num_workers = _suitable_workers(pending)
    sizes = {uri: listed.size for uri, listed in listing.items()}
    with (progress or NullProgress()).task("indexing shards", _megabytes(sum(sizes.values())), "MB") as task:
        counter = _Bytes(task, sum(sizes[uri] for uri in found if uri in sizes))
        if num_workers < 2:
            for uri, listed in pending.items():
                found[uri] = _index(uri, listed, reading, shelf)
                counter.advance(listed.size)
        else:
            found |= _scan_parallel(pending, reading, shelf, num_workers, counter)
    indices = [found[uri] for uri in listing]
    for index in indices:
        index.tell(report)
    if indices and not any(len(index) for index in indices):
        raise DataError(
            f"all {len(indices)} shards are empty, {indices[0].uri} the first; check how they were made or fetched"
        )
    return indices


class _Bytes:
    """Tells a task of bytes in whole megabytes."""

    def __init__(self, task: Any, done: int) -> None:
        self.task, self.done = task, done
        if done:
            task.resume(_megabytes(done))

    def advance(self, size: int) -> None:
        before = _megabytes(self.done)
        self.done += size
        self.task.advance(_megabytes(self.done) - before)


def _megabytes(size: int) -> int:
    return -(-size // _MEGABYTE)


def _index(uri: str, listed: Listed, reading: Reading, shelf: IndexShelf | None) -> ShardIndex:
    index = build_index(uri, reading, described=listed.described)
    if shelf is not None:
        shelf.put(index, listed, reading)
    return index


def _suitable_workers(pending: Mapping[str, Listed]) -> int:
    if sum(listed.size for listed in pending.values()) < PARALLEL_BYTES:
        return 0
    remote = any(listed.described is not None for listed in pending.values())
    return min(len(pending), (os.cpu_count() or 1) * (2 if remote else 1))


def _end_with_parent() -> None:
    """Let this process end when the one that started it is gone, which a killed pass would not tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _scan_parallel(
    pending: Mapping[str, Listed], reading: Reading, shelf: IndexShelf | None, num_workers: int, counter: _Bytes
) -> dict[str, ShardIndex]:
    """Index in processes; a handful is in flight at a time, and the first error stops the rest."""
    results: dict[str, ShardIndex] = {}
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
        waiting: dict[Future[ShardIndex], str] = {}
        upcoming = iter(pending.items())
        try:
            while True:
                while len(waiting) < 2 * num_workers and (following := next(upcoming, None)) is not None:
                    waiting[pool.submit(_index, *following, reading, shelf)] = following[0]
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    uri = waiting.pop(future)
                    results[uri] = future.result()
                    counter.advance(pending[uri].size)
        except BrokenProcessPool as error:
            raise WorkerCrashError(
                f"a process that indexed shards died near {next(uri for uri in pending if uri not in results)}; "
                "run again, with fewer workers if memory was short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return results


def describe_shard(
    index: ShardIndex, name: str, held_out: bool = False, held_out_ids: np.ndarray | None = None
) -> ShardInfo:
    """What the manifest says of an indexed shard, held out as a whole or some videos (S11 [n]) of it."""
    num_held_out = len(index) if held_out else 0
    if held_out_ids is not None:
        num_held_out = int(np.isin(index.ids, held_out_ids).sum())
        held_out = 0 < num_held_out == len(index)
    return ShardInfo(
        name=name,
        uri=index.uri,
        size=index.size,
        checksum=index.checksum,
        num_records=index.num_records,
        num_videos=len(index),
        num_frames=int(index.records["num_frames"].sum()),
        num_labels=index.num_labels,
        num_ratings=index.num_ratings,
        num_segments_beyond_end=index.num_segments_beyond_end,
        num_held_out=num_held_out,
        held_out=held_out,
    )
