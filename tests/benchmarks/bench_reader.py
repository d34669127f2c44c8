"""Reader bars: ours against protobuf + join and against tfrecord_loader + join, alternating in one process.

`python tests/benchmarks/bench_reader.py [--videos 600] [--rounds 5]` prints one JSON line a comparison. With
`--scale-gb 20 --folder F` it also writes many shards there and shows throughput and resident memory from 1 to all.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.data.records.examples import FEATURE_SIZES, encode_sequence_example
from yt8m_assets.data.records.framing import HEADER_BYTES, RecordWriter, ShardFile, walk_headers
from yt8m_assets.data.records.parsing import RecordParser
from yt8m_assets.data.records.wire import example_messages
from yt8m_assets.data.simulation import SimulationConfig, write_dataset


def write_shard(path: Path, num_videos: int, seed: int = 0) -> str:
    """A shard of videos of 120 to 300 frames, about 290 kB each."""
    generator = np.random.default_rng(seed)
    with RecordWriter(path) as writer:
        for number in range(num_videos):
            num_frames = int(generator.integers(120, 301))
            frames = generator.integers(0, 256, (num_frames, sum(FEATURE_SIZES)), dtype=np.uint8)
            labels = generator.integers(0, 3862, 3)
            writer.write(encode_sequence_example(f"v{seed:03d}{number:06d}", frames, labels))
    return str(path)


def ours(uri: str) -> int:
    """Videos of a shard through the reader."""
    return sum(1 for video in read_shard(uri) if video.frames is not None)


def read_records(uri: str) -> Iterator[bytes]:
    """Data of each record; the checksums are not looked at."""
    file = ShardFile(uri)
    return (file.read(position + HEADER_BYTES, length) for position, _, length in walk_headers(file))


def protobuf(uri: str) -> int:
    """The plain way: parse with protobuf, join the frames (framing without checksums)."""
    parse = example_messages().SequenceExample.FromString
    count = 0
    for view in read_records(uri):
        example = parse(view)
        lists = example.feature_lists.feature_list
        parts = []
        for name, size in zip(("rgb", "audio"), FEATURE_SIZES, strict=True):
            joined = b"".join([feature.bytes_list.value[0] for feature in lists[name].feature])
            parts.append(np.frombuffer(joined, np.uint8).reshape(-1, size))
        np.concatenate(parts, axis=1)
        list(example.context.feature["labels"].int64_list.value)
        count += 1
    return count


def loader(uri: str) -> int:
    """The tfrecord package's loader, frames joined."""
    from tfrecord.reader import tfrecord_loader

    context = {"id": "byte", "labels": "int"}
    count = 0
    sequence = {"rgb": "byte", "audio": "byte"}
    for _, features in tfrecord_loader(uri, None, context, sequence_description=sequence):
        parts = [
            np.frombuffer(b"".join(bytes(frame) for frame in features[name]), np.uint8).reshape(-1, size)
            for name, size in zip(("rgb", "audio"), FEATURE_SIZES, strict=True)
        ]
        np.concatenate(parts, axis=1)
        count += 1
    return count


def random_windows(videos: IndexedVideos, count: int) -> int:
    """Five-frame windows anywhere, by index; their records were verified before."""
    generator = np.random.default_rng(1)
    for _ in range(count // 128):
        numbers = generator.integers(0, len(videos), 128)
        firsts = (generator.random(128) * (videos.num_frames[numbers] - 5)).astype(np.int64)
        videos.read_windows(numbers.tolist(), firsts.tolist(), 5)
    return count // 128 * 128


def windows_of_whole_videos(views: list[memoryview], uri: str, count: int) -> int:
    """Such windows from a reader without an index: jump to the record, decode it, cut the window out."""
    generator = np.random.default_rng(1)
    parser = RecordParser(uri)
    for number, share in zip(generator.integers(0, len(views), count).tolist(), generator.random(count), strict=True):
        frames = parser.parse(views[number]).frames
        assert frames is not None
        first = int(share * (len(frames) - 5))
        frames[first : first + 5].copy()
    return count


def compare(name: str, contenders: dict[str, Callable[[], int]], rounds: int, bar: float) -> None:
    """Alternate the contenders; print medians of items a second and the ratio of the first to the second."""
    rates: dict[str, list[float]] = {key: [] for key in contenders}
    for action in contenders.values():
        action()
    for _ in range(rounds):
        for key, action in contenders.items():
            started = time.perf_counter()
            count = action()
            rates[key].append(count / (time.perf_counter() - started))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    first, second = medians.values()
    result = {"benchmark": name, **{key: round(value, 1) for key, value in medians.items()}}
    print(json.dumps({**result, "ratio": round(first / second, 2), "bar": bar, "rounds": rounds}), flush=True)


def resident_megabytes() -> float:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def scale(folder: Path, gigabytes: float, shard_videos: int = 1000) -> None:
    """Simulate many shards in parallel, then read 1, 2, 4, ... of them: rate and resident memory must stay flat."""
    num_shards = max(int(gigabytes * 1e9 / (shard_videos * 247_000)), 1)
    videos = {"num_train_videos": num_shards * shard_videos, "num_train_shards": num_shards}
    config = SimulationConfig(min_seconds=120, max_seconds=300, **videos)
    started = time.perf_counter()
    paths = write_dataset(config, folder / "scale", ("train",), num_workers=os.cpu_count() or 1)
    seconds, size = time.perf_counter() - started, sum(path.stat().st_size for path in paths.train)
    facts = {"shards": num_shards, "gigabytes": round(size / 1e9, 2), "seconds": round(seconds, 1)}
    print(json.dumps({"benchmark": "simulator_scale", **facts}), flush=True)
    uris = [str(path) for path in paths.train]
    count = 1
    while True:
        started, videos, peak = time.perf_counter(), 0, 0.0
        for uri in uris[:count]:
            videos += ours(uri)
            peak = max(peak, resident_megabytes())
        rate = videos / (time.perf_counter() - started)
        line = {"benchmark": "reader_scale", "shards": count, "videos_per_second": round(rate, 1)}
        print(json.dumps({**line, "resident_megabytes": round(peak, 1)}), flush=True)
        if count == num_shards:
            break
        count = min(count * 2, num_shards)


def main() -> None:
    """Print every reader bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--scale-gb", type=float, default=0.0)
    parser.add_argument("--only-scale", action="store_true", help="leave the peers out")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.only_scale:
            scale(Path(name), options.scale_gb)
            return
        uri = write_shard(Path(name) / "bench.tfrecord", options.videos)
        rounds = options.rounds
        plain = {"protobuf_join": lambda: protobuf(uri)}
        compare("reader_crc_on_vs_protobuf", {"ours": lambda: ours(uri), **plain}, rounds, 3)
        other = {"tfrecord_loader_join": lambda: loader(uri)}
        compare("reader_crc_on_vs_tfrecord_loader", {"ours": lambda: ours(uri), **other}, rounds, 5)
        videos = IndexedVideos([build_index(uri)])
        for number in range(len(videos)):
            videos.read(number)
        views = list(read_records(uri))
        whole = {"whole_decode": lambda: windows_of_whole_videos(views, uri, 1000)}
        windows = {"index": lambda: random_windows(videos, 10_000), **whole}
        compare("random_windows_vs_whole_decode", windows, rounds, 10)
        if options.scale_gb:
            scale(Path(name), options.scale_gb)


if __name__ == "__main__":
    main()
