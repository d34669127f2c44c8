"""Reading ahead: what is needed next is there when it is needed, once, within the cache, and nothing else is."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.data.factory import SIZES, encode, frame_record, make_video
from tests.storage.fake_store import Crowd, FakeStore
from yt8m_assets.data.dataset import ahead as module
from yt8m_assets.data.dataset import datasets, loading
from yt8m_assets.data.dataset.ahead import Need, ReadAhead, Source, shard_needs, walk
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import scan_shards
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.errors import CorruptShardError, MissingDataError, StorageError, TransientError
from yt8m_assets.storage import remote
from yt8m_assets.storage.cache import ShardCache
from yt8m_assets.storage.retry import RetryPolicy

QUICK = RetryPolicy(request_seconds=2, deadline_seconds=0.5, first_delay_seconds=0.02, max_delay_seconds=0.1)
NUM_SHARDS, VIDEOS = 12, 8


def shard(number: int) -> bytes:
    """VIDEOS videos of six frames."""
    return b"".join(frame_record(encode(make_video(f"v{number:02d}{n}", 6, [1]))) for n in range(VIDEOS))


SHARDS = [shard(number) for number in range(NUM_SHARDS)]
SIZE = len(SHARDS[0])
assert {len(content) for content in SHARDS} == {SIZE}


@pytest.fixture
def store(monkeypatch):
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(remote, "_policy", QUICK)
    for number, content in enumerate(SHARDS):
        fake.put(f"bucket/s{number:02d}", content)
    yield fake
    fake.close()


@pytest.fixture
def sources(store) -> list[Source]:
    listed = remote.glob_uris("gs://bucket/s*")
    store.requests.clear()
    return [Source(uri, found.size, found) for uri, found in listed.items()]


def downloads(store: FakeStore) -> list[str]:
    return [path.rsplit("/", 1)[-1] for _, path in store.requests if "/download/" in path]


def cache_of(tmp_path, num_shards: int) -> ShardCache:
    return ShardCache(path=tmp_path / "copies", max_bytes=num_shards * SIZE)


def stream_of(tmp_path, copies: ShardCache, **options) -> PretrainingDataset:
    """A stream over all shards, whose indexes are there already."""
    uris = [f"gs://bucket/s{number:02d}" for number in range(NUM_SHARDS)]
    reading = Reading(feature_sizes=SIZES, copies=copies)
    indices = scan_shards(uris, replace(reading, copies=cache_of(tmp_path / "others", 99)))
    values = {"num_classes": 5, "batch_size": 4, "window_frames": 5, "shuffle_buffer": 2 * VIDEOS} | options
    return PretrainingDataset(IndexedVideos(indices, reading), **values)


def settle(store: FakeStore) -> list[str]:
    """What was downloaded, when nothing more is."""
    before = -1
    while len(store.requests) != before:
        before = len(store.requests)
        time.sleep(0.3)
    return downloads(store)


def slow_needs(way: list[int]) -> list[Need]:
    """The definition: first and last place of each shard, in the order of the first."""
    return [Need(s, way.index(s), len(way) - 1 - way[::-1].index(s)) for s in dict.fromkeys(way)]


def test_when_shards_are_needed():
    for seed in range(20):
        way = np.random.default_rng(seed).integers(0, 7, 30)
        moved = [Need(s, first + 5, last + 5) for s, first, last in slow_needs(way.tolist())]
        assert shard_needs(way, 5) == moved
    assert shard_needs(np.empty(0, np.int64)) == []


@pytest.mark.parametrize("planned", [1, 2**18])
def test_an_epoch_reads_each_shard_once_and_gives_the_same_batches(store, tmp_path, monkeypatch, planned):
    """In a cache that holds the window and little more, where each shard goes again."""
    monkeypatch.setattr(datasets, "_PLANNED", planned)  # an epoch in two parts, or at once
    plain = stream_of(tmp_path, cache_of(tmp_path / "plain", 99))
    num_batches = plain.num_examples // 4
    expected = [plain.batch_at(4 * number).video_ids for number in range(num_batches)]
    copies = cache_of(tmp_path, 6)
    stream = stream_of(tmp_path, copies)
    store.requests.clear()
    batches = iter(stream)
    most, found = 0, []
    for batch in itertools.islice(batches, num_batches - 1):
        found.append(batch.video_ids)
        with copies._lock("evict"):
            most = max(most, sum(path.stat().st_size for path in copies.path.iterdir()))
    assert found == expected[:-1]
    assert most <= copies.max_bytes
    batches.close()
    assert len(store.requests) == len(downloads(store)), "nothing is asked besides reads"
    counts = {name: downloads(store).count(name) for name in downloads(store)}
    again = sum(count - 1 for count in counts.values())
    assert len(counts) == NUM_SHARDS
    assert again <= 3, f"the second epoch begins within reach of the first one's end: {counts}"


def test_a_second_epoch_on_a_large_enough_disk_reads_nothing(store, tmp_path, sources):
    copies = cache_of(tmp_path, NUM_SHARDS)
    needs = [shard_needs(np.arange(NUM_SHARDS), offset) for offset in (0, NUM_SHARDS)]
    ahead = ReadAhead(copies, sources, iter(needs), reach=3)
    for position in range(NUM_SHARDS):
        ahead.wait(position, position + 1)
    assert sorted(downloads(store)) == [f"s{number:02d}" for number in range(NUM_SHARDS)]
    store.requests.clear()
    for position in range(NUM_SHARDS, 2 * NUM_SHARDS):
        ahead.wait(position, position + 1)
    ahead.close()
    assert store.requests == []


@pytest.mark.parametrize("buffer", [2 * VIDEOS, NUM_SHARDS * VIDEOS, 10**6])
def test_epochs_go_on_where_all_shards_are_held(store, tmp_path, buffer):
    """The way of a stream has no end, and there is nothing on it that is still to be fetched."""
    stream = stream_of(tmp_path, cache_of(tmp_path, 99), shuffle_buffer=buffer)
    store.requests.clear()
    batches = iter(stream)
    for _ in range(3 * NUM_SHARDS * VIDEOS // 4):
        next(batches)
    batches.close()
    assert len(downloads(store)) == len(store.requests) == NUM_SHARDS


def test_local_shards_beside_those_of_a_bucket_are_passed_over(store, tmp_path, sources):
    mixed = [source if number == 2 else None for number, source in enumerate(sources)]
    needs = itertools.chain([shard_needs(np.arange(4))], ([Need(0, n, n)] for n in itertools.count(4)))
    ahead = ReadAhead(cache_of(tmp_path, 99), mixed, needs, reach=2)
    for position in range(50):
        ahead.wait(position, position + 1)
    ahead.close()
    assert downloads(store) == ["s02"]


def test_only_the_coming_window_is_fetched(store, tmp_path):
    """Not all that fits: a run of two steps, or one that is taken away, pays for what it uses."""
    stream = stream_of(tmp_path, cache_of(tmp_path, 99))
    store.requests.clear()
    batches = iter(stream)
    next(batches)
    assert len(settle(store)) <= 3
    for _ in range(2 * VIDEOS // 4):
        next(batches)
    assert 4 <= len(settle(store)) <= 6
    batches.close()


def test_a_resumed_epoch_needs_the_windows_shards_only(store, tmp_path):
    stream = stream_of(tmp_path, cache_of(tmp_path, 4))
    store.requests.clear()
    stream.position = 6 * VIDEOS
    batches = iter(stream)
    next(batches)
    assert len(settle(store)) <= 4
    batches.close()


def test_what_is_in_use_stays_though_it_came_first(store, tmp_path, sources):
    """Shard 0 is needed all the way, the others once each: by age alone it would be the first to go."""
    way = np.array([value for number in range(1, NUM_SHARDS) for value in (0, number)])
    copies = cache_of(tmp_path, 3)
    ahead = ReadAhead(copies, sources, iter([shard_needs(way)]), reach=4)
    for position in range(len(way)):
        ahead.wait(position, position + 1)
        time.sleep(0.01)
        assert [path.stat().st_size for path in copies.path.glob("*-s00")] == [SIZE]
    ahead.close()
    assert downloads(store).count("s00") == 1
    assert len(downloads(store)) == NUM_SHARDS


def test_nothing_is_fetched_further_ahead_than_fits(store, tmp_path, sources):
    ahead = ReadAhead(cache_of(tmp_path, 3), sources, iter([shard_needs(np.arange(NUM_SHARDS))]), reach=99)
    ahead.wait(0, 1)
    assert sorted(settle(store)) == ["s00", "s01", "s02"]
    ahead.wait(1, 2)
    assert sorted(settle(store)) == ["s00", "s01", "s02", "s03"]
    ahead.close()


def test_a_walk_reaches_so_many_bytes_ahead(store, tmp_path, sources):
    needs = iter([shard_needs(np.arange(NUM_SHARDS))])
    ahead = ReadAhead(cache_of(tmp_path, 99), sources, needs, reach_bytes=3 * SIZE)
    ahead.wait(0, 1)
    assert sorted(settle(store)) == ["s00", "s01", "s02", "s03"]
    ahead.close()


def test_a_cache_smaller_than_what_is_in_use_is_refused_at_once(store, tmp_path):
    stream = stream_of(tmp_path, cache_of(tmp_path, 2))
    cure = r"enlarge it \(YT8M_CACHE_GB\), or lower training\.shuffle_buffer"
    with pytest.raises(StorageError, match=rf"bytes of shards are in use at a time, the cache holds .*; {cure}"):
        next(iter(stream))
    with pytest.raises(StorageError, match="in use at a time"):
        next(iter(stream))


def test_local_shards_need_no_threads(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(SHARDS[0])
    videos = load_videos([str(path)], Reading(feature_sizes=SIZES))
    assert videos.ahead(iter([])) is None
    assert list(walk(videos)) == list(range(VIDEOS))


def test_all_videos_in_order_are_read_ahead(store, tmp_path, monkeypatch):
    """As prediction does, and what gathers ratings: many shards are on their way at once."""
    videos = stream_of(tmp_path, cache_of(tmp_path, 99)).videos
    crowd = store.before = Crowd(0.1)
    store.requests.clear()
    assert [video.video_id for video in videos] == list(videos.video_ids)
    assert crowd.most > 3
    assert len(downloads(store)) == NUM_SHARDS


def first_error(stream: PretrainingDataset) -> BaseException:
    batches: Iterator[object] = iter(stream)
    try:
        with pytest.raises(Exception) as caught:
            for _ in range(NUM_SHARDS * VIDEOS):
                next(batches)
    finally:
        batches.close()  # type: ignore[attr-defined]
    return caught.value


def test_errors_are_those_of_reading(store, tmp_path, monkeypatch):
    for fault, kind in ((None, MissingDataError), (b"", CorruptShardError), (503, TransientError)):
        stream = stream_of(tmp_path, cache_of(tmp_path / str(kind), 99))
        name = "bucket/s05"
        content = store.objects[name]
        if fault == 503:
            store.only, store.always = (lambda method, path: "s05" in path and "download" in path), 503
        elif fault is None:
            del store.objects[name]
        else:
            store.put(name, content[::-1])
        with_ahead = first_error(stream)
        stream.position = 0
        monkeypatch.setattr(PretrainingDataset, "ahead", lambda self: None)
        without = first_error(stream)
        monkeypatch.undo()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
        monkeypatch.setattr(remote, "_policy", QUICK)
        assert type(with_ahead) is type(without) is kind
        assert str(with_ahead).partition("gave up after")[0] == str(without).partition("gave up after")[0]
        store.objects[name], store.always = content, None


def test_a_store_that_answers_again_is_asked_again(store, tmp_path, sources):
    """What failed ahead of time is no fault yet."""
    store.only, store.always = (lambda method, path: "s01" in path), 503
    ahead = ReadAhead(cache_of(tmp_path, 9), sources, iter([shard_needs(np.arange(3))]), reach=9)
    ahead.wait(0, 1)
    deadline = time.monotonic() + 30
    while not ahead._held.get(1, module._Held(0, 0)).failed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ahead._held[1].failed
    store.always = None
    ahead.wait(1, 2)
    assert ahead._held[1].path is not None
    assert ahead._held[1].path.read_bytes() == store.objects["bucket/s01"]
    ahead.wait(2, 3)
    ahead.close()


def test_streams_that_share_a_cache_fetch_each_shard_once(store, tmp_path):
    """The ranks of a machine, or two runs."""
    copies = cache_of(tmp_path, 99)
    streams = [stream_of(tmp_path, copies, rank=rank, num_ranks=2) for rank in range(2)]
    store.requests.clear()
    store.before = lambda method, path, body: time.sleep(0.05)
    iterators = [iter(stream) for stream in streams]

    def use(batches: Iterator[object]) -> None:
        for _ in range(NUM_SHARDS * VIDEOS // 8):
            next(batches)

    threads = [threading.Thread(target=use, args=(batches,)) for batches in iterators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = downloads(store)
    for batches in iterators:
        batches.close()  # type: ignore[attr-defined]
    assert sorted(found) == sorted(set(found))


def test_closing_ends_downloads_and_leaves_nothing(store, tmp_path, sources):
    store.before = lambda method, path, body: time.sleep(0.5 if "/download/" in path else 0)
    copies = cache_of(tmp_path, 99)
    ahead = ReadAhead(copies, sources, iter([shard_needs(np.arange(NUM_SHARDS))]), reach=99)
    while not store.requests:
        time.sleep(0.01)
    ahead.close()
    assert not [thread for thread in ahead._threads if thread.is_alive()]
    assert not [path for path in copies.path.iterdir() if path.name.endswith(".tmp")]


def test_shards_are_waited_for_before_a_worker_is(monkeypatch):
    """A worker that has waited for a batch too long counts as hanging; a slow bucket is no hang."""
    events: list[str] = []

    class Stream:
        position, stride, num_workers, pin_memory = 0, 4, 2, False

        def ahead(self) -> object:
            return self

        def wait(self, position: int, end: int) -> None:
            events.append(f"wait {position} {end}")

        def close(self) -> None:
            events.append("close")

    def from_workers(stream: Stream) -> Iterator[int]:
        while True:
            events.append("batch")
            stream.position += 4
            yield stream.position

    monkeypatch.setattr(loading, "_from_workers", from_workers)
    batches = loading.iterate_batches(Stream())  # type: ignore[arg-type]
    assert [next(batches), next(batches)] == [4, 8]
    batches.close()  # type: ignore[attr-defined]
    assert events == ["wait 0 4", "batch", "wait 4 8", "batch", "close"]


def test_worker_processes_read_what_was_fetched_for_them(store, tmp_path):
    stream = stream_of(tmp_path, cache_of(tmp_path, 99), num_workers=2)
    store.requests.clear()
    expected = [stream.batch_at(4 * number).video_ids for number in range(6)]
    batches = iter(stream)
    assert [next(batches).video_ids for _ in range(6)] == expected
    found = downloads(store)  # what is under way when it is closed is broken off
    batches.close()
    assert sorted(found) == sorted(set(found))
