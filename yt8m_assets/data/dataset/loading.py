"""Running a batch stream: in the loop itself, in a background thread, or in worker processes."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from yt8m_assets.data.dataset.ahead import ReadAhead
from yt8m_assets.errors import WorkerCrashError

PREFETCHED_BATCHES = 2
"""Batches that wait ready for each worker."""
WORKER_TIMEOUT_SECONDS = 300.0
"""A batch that takes longer counts as a hang."""


T = TypeVar("T")


class Stream(Protocol):
    """Batches by position, and where the next one is."""

    position: int
    num_workers: int
    pin_memory: bool

    @property
    def stride(self) -> int:
        """From one batch's position to the next one's."""
        ...

    def batch_at(self, position: int) -> Any:
        """The batch at a position."""
        ...

    def ahead(self) -> ReadAhead | None:
        """Fetching its shards before they are needed, from its position on; None where there is nothing to fetch."""
        ...


def iterate_batches(stream: Stream) -> Iterator[Any]:
    """Yield the stream's batches from its position on, which is advanced before each is handed out."""
    ahead = stream.ahead()
    return _made(stream) if ahead is None else _fetched(stream, ahead)


def _fetched(stream: Stream, ahead: ReadAhead) -> Iterator[Any]:
    """Here the shards of a batch are waited for, however long that takes: workers that wait for it count as hanging."""
    batches = _made(stream)
    try:
        while True:
            ahead.wait(stream.position, stream.position + stream.stride)
            yield next(batches)
    finally:
        ahead.close()


def _made(stream: Stream) -> Iterator[Any]:
    if stream.num_workers:
        return _from_workers(stream)
    if stream.pin_memory:
        return _from_thread(stream)
    return _inline(stream)


def _inline(stream: Stream) -> Iterator[Any]:
    while True:
        batch = stream.batch_at(stream.position)
        stream.position += stream.stride
        yield batch


def _from_thread(stream: Stream) -> Iterator[Any]:
    """A thread makes and pins the next batches while the device computes."""

    def pinned() -> Iterator[Any]:
        position = stream.position
        while True:
            yield stream.batch_at(position).pin_memory()
            position += stream.stride

    for batch in read_ahead(pinned(), PREFETCHED_BATCHES):
        stream.position += stream.stride
        yield batch


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the items while a thread makes the next ones, at most `depth` of them; what it raises is raised here."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put((item, error), timeout=0.2)
                break

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=produce, name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


class _Positions:
    """The endless sequence of positions, as a sampler for torch's DataLoader."""

    def __init__(self, first: int, stride: int) -> None:
        self.first, self.stride = first, stride

    def __iter__(self) -> Iterator[int]:
        position = self.first
        while True:
            yield position
            position += self.stride


class _BatchesByPosition:
    """The stream as a map from position to batch, as torch's DataLoader wants it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __getitem__(self, position: int) -> Any:
        try:
            return self.stream.batch_at(position)
        except Exception as error:  # noqa: BLE001 - DataLoader would wrap it in another type; handed over as it is
            return error


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(number: int) -> None:
    import torch

    torch.set_num_threads(1)


def _from_workers(stream: Stream) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _BatchesByPosition(stream),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Positions(stream.position, stream.stride),
        num_workers=stream.num_workers,
        collate_fn=_unchanged,
        pin_memory=stream.pin_memory,
        timeout=WORKER_TIMEOUT_SECONDS,
        worker_init_fn=_start_worker,
        multiprocessing_context="forkserver",
        prefetch_factor=PREFETCHED_BATCHES,
    )
    iterator = iter(loader)
    while True:
        try:
            item = next(iterator)
        except (RuntimeError, OSError, EOFError) as error:  # the worker's own errors come as items
            raise WorkerCrashError(
                f"a data-loading worker died or hung ({error}); run again, lower data.num_workers if memory is short"
            ) from error
        if isinstance(item, BaseException):
            raise item
        stream.position += stream.stride
        yield item
