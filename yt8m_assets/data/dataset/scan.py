"""Indexing many shards at once, with a count of what is done."""

import itertools
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from yt8m_assets.data.dataset.index import ShardIndex, load_index
from yt8m_assets.data.dataset.reading import RELEASED, Reading
from yt8m_assets.data.dataset.shards import ShardInfo, shard_size
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.errors import DataError, WorkerCrashError
from yt8m_assets.progress import NullProgress, Progress

logger = logging.getLogger(__name__)
PARALLEL_BYTES = 2**30
"""Below this much data, processes cost more than they save."""


def scan_shards(
    uris: Sequence[str],
    reading: Reading = RELEASED,
    *,
    report: ReadReport | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> list[ShardIndex]:
    """The index of every shard, in the order of `uris`; those in `index_folder` that still fit are not read again.

    num_workers: processes; None chooses one a core for a gigabyte or more, 0 reads in this process.
    Raises what reading raises; DataError when there are shards and all are empty.
    """
    report = reading.new_report() if report is None else report
    if num_workers is None:
        num_workers = min(len(uris), os.cpu_count() or 1) if _is_large(uris) else 0
    with (progress or NullProgress()).task("indexing shards", len(uris), "shards") as task:
        if num_workers < 2:
            indices = []
            for uri in uris:
                indices.append(load_index(uri, reading))
                task.advance()
        else:
            indices = _scan_parallel(uris, reading, num_workers, task)
    for index in indices:
        index.tell(report)
    if indices and not any(len(index.records) for index in indices):
        raise DataError(
            f"all {len(indices)} shards are empty, {uris[0]} the first; check how they were made or fetched"
        )
    return indices


def _is_large(uris: Sequence[str]) -> bool:
    """Whether the shards hold PARALLEL_BYTES; asks no further than it must, since each answer may be a request."""
    sizes = itertools.accumulate(shard_size(uri) for uri in uris)
    return any(total >= PARALLEL_BYTES for total in sizes)


def _scan_parallel(uris: Sequence[str], reading: Reading, num_workers: int, task: Any) -> list[ShardIndex]:
    """Index in processes; a handful is in flight at a time, and the first error stops the rest."""
    results: dict[int, ShardIndex] = {}
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        waiting: dict[Future[ShardIndex], int] = {}
        upcoming = iter(enumerate(uris))
        try:
            while True:
                while len(waiting) < 2 * num_workers and (following := next(upcoming, None)) is not None:
                    waiting[pool.submit(load_index, following[1], reading)] = following[0]
                if not waiting:
                    break
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    number = waiting.pop(future)
                    results[number] = future.result()
                    task.advance()
        except BrokenProcessPool as error:
            raise WorkerCrashError(
                f"a process that indexed shards died near {uris[min(set(range(len(uris))) - set(results))]}; "
                "run again, with fewer workers if memory was short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[number] for number in range(len(uris))]


def describe_shard(
    index: ShardIndex, name: str, held_out: bool = False, held_out_ids: np.ndarray | None = None
) -> ShardInfo:
    """What the manifest says of an indexed shard, held out as a whole or some videos (S11 [n]) of it."""
    num_held_out = len(index.ids) if held_out else 0
    if held_out_ids is not None:
        num_held_out = int(np.isin(index.ids, held_out_ids).sum())
        held_out = 0 < num_held_out == len(index.ids)
    return ShardInfo(
        name=name,
        uri=index.uri,
        size=index.size,
        checksum=index.checksum,
        num_records=index.num_records,
        num_videos=len(index.records),
        num_frames=int(index.records["num_frames"].sum()),
        num_labels=index.num_labels,
        num_ratings=index.num_ratings,
        num_segments_beyond_end=index.num_segments_beyond_end,
        num_held_out=num_held_out,
        held_out=held_out,
    )
