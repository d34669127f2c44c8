"""Rows of bench_scale about reading: how much of a bucket's bandwidth arrives, and what a second epoch asks for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.data.factory import encode, frame_record
from tests.slow_bucket import SlowBucket, slow_bucket
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import list_shards
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.data.records.video import Video
from yt8m_assets.storage.cache import ShardCache

VIDEOS = 48
"""A shard: 17 MB; real ones have 390."""
WINDOW = 16
"""Shards in a shuffle window: 270 MB, where the challenge's window has 4 GB."""


def write_shards(folder: Path, num_shards: int) -> None:
    """Shards of whole videos of 300 frames, full width."""
    generator = np.random.default_rng(5)
    folder.mkdir()
    frames = generator.integers(0, 256, (300, 1152), dtype=np.uint8)
    for shard in range(num_shards):
        videos = (Video(f"v{shard:04d}{number:04d}", frames, np.array([number % 8]), None) for number in range(VIDEOS))
        (folder / f"train{shard:04d}.tfrecord").write_bytes(
            b"".join(frame_record(encode(v, (1024, 128))) for v in videos)
        )


@contextmanager
def stream(folder: Path, num_shards: int, **bucket_options: float) -> Iterator[tuple[SlowBucket, PretrainingDataset]]:
    """A training's stream over shards in a bucket of which this machine has the index and nothing else."""
    write_shards(folder / "data", num_shards)
    with slow_bucket(**bucket_options) as bucket:
        root = bucket.load(folder / "data", "yt/2")
        indices = [
            replace(build_index(str(folder / "data" / uri.rsplit("/", 1)[-1])), uri=uri, described=listed.described)
            for uri, listed in list_shards(f"{root}/train*.tfrecord").items()
        ]
        copies = ShardCache(path=folder / "copies", max_bytes=2**40)
        yield (
            bucket,
            PretrainingDataset(
                IndexedVideos(indices, Reading(copies=copies)),
                num_classes=8,
                batch_size=VIDEOS,
                window_frames=5,
                shuffle_buffer=WINDOW * VIDEOS,
            ),
        )


def bandwidth(folder: Path, latency_ms: float, mb_per_second: float, num_shards: int = 64) -> float:
    """Bytes of an epoch a second, as a training that does nothing but read takes them / what the bucket gives."""
    with stream(folder, num_shards, latency_ms=latency_ms, mb_per_second=mb_per_second) as (bucket, batches):
        reading = iter(batches)
        next(reading)  # libraries are loaded, lines are open
        before, began = bucket.counts().bytes, time.perf_counter()
        for _ in range(num_shards - WINDOW):  # until the last shard is on its way
            next(reading)
        seconds, size = time.perf_counter() - began, bucket.counts().bytes - before
        reading.close()  # type: ignore[attr-defined]
    return size / 1e6 / seconds / mb_per_second


def second_epoch(folder: Path, num_shards: int = 12) -> float:
    """Requests and bytes of the second epoch on a disk that holds everything."""
    with stream(folder, num_shards, latency_ms=20.0) as (bucket, batches):
        reading = iter(batches)
        for _ in range(num_shards):
            next(reading)
        bucket.reset()
        for _ in range(num_shards):
            next(reading)
        counts = bucket.counts()
        reading.close()  # type: ignore[attr-defined]
    return float(counts.bytes + counts.reads + counts.asked)
