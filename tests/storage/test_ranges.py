"""Downloads in parallel ranges, against a store on loopback that misbehaves as told."""

import os
import threading
import time

import pytest

from tests.storage.fake_store import Crowd, FakeStore
from yt8m_assets.errors import CorruptShardError, TransientError
from yt8m_assets.storage import connection, ranges, remote
from yt8m_assets.storage.ranges import RangeReader, Stop, Stopped
from yt8m_assets.storage.retry import ChangedBytesError, RetryPolicy

QUICK = RetryPolicy(request_seconds=0.5, deadline_seconds=1.5, first_delay_seconds=0.02, max_delay_seconds=0.1)
CONTENT = bytes(range(256)) * 8192  # 2 MiB: several buffers


@pytest.fixture
def store(monkeypatch):
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(remote, "_policy", QUICK)
    fake.put("bucket/large", CONTENT)
    yield fake
    fake.close()


@pytest.fixture
def reader(store, tmp_path):
    descriptor = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    yield RangeReader(connection.connect("bucket", QUICK), "bucket/large", "", QUICK, descriptor)
    os.close(descriptor)


def test_a_range_goes_on_where_its_line_broke(store, reader, tmp_path):
    """And each piece that arrives begins the time without progress anew."""
    store.faults = ["half-line"] * 20
    started = time.monotonic()
    reader.read(1000, len(CONTENT))
    assert (tmp_path / "copy").read_bytes()[1000:] == CONTENT[1000:]
    assert store.media_bytes < 2 * len(CONTENT), "what had arrived is not asked for again"
    assert not store.faults or time.monotonic() - started < 60


def test_a_line_that_was_closed_while_idle_is_opened_anew_without_a_pause(store, reader, caplog):
    reader.read(0, 1000)
    store.faults = ["reset"]
    reader.read(1000, 2000)
    assert "attempt" not in caplog.text


def test_another_generation_is_not_mixed_in(store, reader, tmp_path):
    reader.generation = "1"
    reader.read(0, 1000)
    store.put("bucket/large", CONTENT[::-1])
    with pytest.raises(ChangedBytesError):
        reader.read(1000, 2000)
    described = remote.stat("gs://bucket/large")
    assert described.generation == "2"
    remote.fetch_to("gs://bucket/large", tmp_path / "whole", described)
    assert (tmp_path / "whole").read_bytes() == CONTENT[::-1]


def test_a_range_behind_the_end_does_not_arrive(store, reader):
    with pytest.raises(CorruptShardError, match=r"gs://bucket/large.*1000 bytes from 2097152 on do not arrive, twice"):
        reader.read(len(CONTENT), len(CONTENT) + 1000)


def test_a_download_that_is_stopped_ends_at_once_and_leaves_the_others_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 100_000)
    store.before = lambda method, path, body: time.sleep(0.2 if "/download/" in path else 0)
    files, _ = remote.open_filesystem("gs://bucket/large")
    stop, ends = Stop(), []
    other = threading.Thread(target=lambda: ends.append(files.get_file("bucket/large", tmp_path / "other")))
    threading.Timer(0.1, stop.set).start()
    other.start()
    with pytest.raises(Stopped):
        files.get_file("bucket/large", tmp_path / "copy", stop=stop)
    other.join()
    assert ends == [None]
    assert (tmp_path / "other").read_bytes() == CONTENT


def test_a_stop_ends_a_pause(store, reader):
    store.always = 503
    reader.policy = RetryPolicy(first_delay_seconds=30, max_delay_seconds=60)
    threading.Timer(0.2, reader.stop.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        reader.read(0, 1000)
    assert time.monotonic() - started < 10


def test_the_first_error_ends_the_other_ranges(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 10_000)
    monkeypatch.setattr(ranges, "NUM_PARALLEL", 4)
    monkeypatch.setattr(ranges, "_pool", ranges._Pool())
    store.only, store.always = (lambda method, path: "alt=media" in path), 503
    with pytest.raises(TransientError, match="gs://bucket/large: the store answered 503"):
        remote.fetch_to("gs://bucket/large", tmp_path / "copy")
    store.requests.clear()
    time.sleep(0.3)
    assert store.requests == []


def test_ranges_are_in_flight_together_but_not_more_than_the_limit(store, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 100_000)
    monkeypatch.setattr(ranges, "NUM_PARALLEL", 5)
    monkeypatch.setattr(ranges, "_pool", ranges._Pool())
    crowd = store.before = Crowd(0.05)
    threads = [threading.Thread(target=remote.fetch_to, args=("gs://bucket/large", tmp_path / n)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / name).read_bytes() == CONTENT for name in "ab"] == [True, True]
    assert 2 <= crowd.most <= 5


def test_threads_that_nobody_needs_go(store, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(ranges, "_pool", ranges._Pool())
    for _ in range(3):
        remote.fetch_to("gs://bucket/large", tmp_path / "copy")
        deadline = time.monotonic() + 20
        while ranges._pool._num_threads and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ranges._pool._num_threads == 0
