"""The cache of this machine: bounded whatever is open, shared by processes, and sound after a kill."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.storage.fake_store import FakeStore
from yt8m_assets.data.records import framing
from yt8m_assets.data.records.framing import ShardFile
from yt8m_assets.errors import ConfigError, StorageError
from yt8m_assets.storage import cache, ranges, remote
from yt8m_assets.storage.cache import Cache, ShardCache


@pytest.fixture
def store(monkeypatch):
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    yield fake
    fake.close()


@pytest.fixture
def copies(tmp_path) -> ShardCache:
    return ShardCache(path=tmp_path / "copies", max_bytes=2500)


def held(copies: ShardCache) -> dict[str, int]:
    """Object -> bytes of what lies in the folder."""
    found = (path for path in copies.path.iterdir() if not path.name.startswith(".lock-"))
    return {path.name.partition("-")[2]: path.stat().st_size for path in found}


def downloads(store: FakeStore) -> int:
    return sum("/download/" in path for _, path in store.requests)


def fill(store: FakeStore, names: str, size: int = 1000) -> list[str]:
    return [store.put(f"bucket/{name}", name.encode() * size) for name in names]


def test_what_was_used_longest_ago_goes_first(store, copies):
    a, b, c = fill(store, "abc")
    for uri in (a, b, a, c):
        copies.get(uri)
    assert held(copies) == {"a": 1000, "c": 1000}


def test_an_object_larger_than_the_cache_is_refused_and_one_as_large_takes_it_all(store, copies):
    fill(store, "ab")
    copies.get("gs://bucket/a")
    with pytest.raises(
        StorageError, match=r"2,501 bytes do not fit the cache .* of 2,500; enlarge it \(YT8M_CACHE_GB\)"
    ):
        copies.get(store.put("bucket/large", bytes(2501)))
    copies.get(store.put("bucket/fits", bytes(2500)))
    assert held(copies) == {"fits": 2500}


def test_an_open_copy_that_goes_gives_its_bytes_back_and_is_still_read(store, copies):
    """Readers keep shards open: what they hold would lie on the disk, uncounted."""
    (a, *others) = fill(store, "abcd")
    described = remote.stat(a)
    file = ShardFile(a, copies, described)
    assert file.read(10, 20) == b"a" * 20
    free = file._descriptor
    for uri in others:
        copies.get(uri)
    assert os.fstat(free).st_size == 0, "its bytes lie on the disk no more"
    assert file.read(10, 20) == b"a" * 20
    assert file.size == 1000
    assert sum(held(copies).values()) <= 2500
    assert file.read(990, 20) == b"a" * 10
    assert downloads(store) == 5


def test_reading_behind_the_end_asks_for_nothing(store, copies):
    (a,) = fill(store, "a")
    file = ShardFile(a, copies)
    store.requests.clear()
    assert [file.read(1000, 5), file.read(5000, 5), file.read(995, 10)] == [b"", b"", b"aaaaa"]
    assert store.requests == []


def test_what_is_on_its_way_counts(store, tmp_path):
    """Else many downloads at once are each granted the room that is there."""
    copies = ShardCache(path=tmp_path / "copies", max_bytes=3000)
    uris = fill(store, "abcdef")
    most: list[int] = []

    def look(method: str, path: str, body: bytes) -> None:
        if "/download/" in path:
            with copies._lock("evict"):  # names do not change while they are counted
                most.append(sum(held(copies).values()))
            time.sleep(0.05)

    store.before = look
    threads = [threading.Thread(target=copies.get, args=(uri,)) for uri in uris]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1000 <= max(most) <= 3000
    assert sum(held(copies).values()) <= 3000
    assert set(held(copies).values()) == {1000}


def test_a_download_never_counts_for_less_than_its_reservation(store, tmp_path):
    """Else the room that it was granted is granted again in that moment."""
    (uri,) = fill(store, "a")
    filling = tmp_path / "filling"
    filling.write_bytes(bytes(1000))
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add(os.stat(filling).st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(200):
        remote.fetch_to(uri, filling)
    done.set()
    watcher.join()
    assert seen == {1000}


_FETCH = """
import sys
from pathlib import Path
from yt8m_assets.storage.cache import ShardCache
ShardCache(path=Path(sys.argv[1]), max_bytes=2500).get(sys.argv[2])
"""


def test_a_killed_download_leaves_nothing_that_counts_or_is_read(store, copies):
    a, b, c = fill(store, "abc")
    started = threading.Event()
    store.before = lambda method, path, body: (started.set(), time.sleep(3)) if "/download/" in path else None  # type: ignore[func-returns-value]
    process = subprocess.Popen([sys.executable, "-c", _FETCH, str(copies.path), a])
    assert started.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store.before = lambda method, path, body: None
    assert held(copies) == {"a.tmp": 1000} or list(held(copies)) != ["a"]
    assert copies.get(b).read_bytes() == b"b" * 1000
    assert copies.get(c).read_bytes() == b"c" * 1000
    assert set(held(copies)) == {"b", "c"}, "the leftover made room"
    assert copies.get(a).read_bytes() == b"a" * 1000


def test_two_processes_fetch_an_object_once(store, copies):
    (a,) = fill(store, "a")
    store.before = lambda method, path, body: time.sleep(0.5 if "/download/" in path else 0)
    processes = [subprocess.Popen([sys.executable, "-c", _FETCH, str(copies.path), a]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert downloads(store) == 1
    assert held(copies) == {"a": 1000}


def no_space(monkeypatch, times: int) -> None:
    """Let writing into a download fail for a while: the disk is full."""
    left, write = [times], os.pwrite

    def pwrite(descriptor: int, content: bytes, place: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, place)

    monkeypatch.setattr(ranges.os, "pwrite", pwrite)


def test_a_full_disk_makes_copies_go_before_it_is_an_error(store, tmp_path, monkeypatch):
    copies = ShardCache(path=tmp_path / "copies", max_bytes=10**6)
    a, b, c = fill(store, "abc")
    copies.get(a)
    copies.get(b)
    no_space(monkeypatch, 1)
    assert copies.get(c).read_bytes() == b"c" * 1000
    assert set(held(copies)) == {"b", "c"}
    no_space(monkeypatch, 10**6)
    with pytest.raises(
        StorageError, match=r"-d: cannot write: no space left \(1,000 bytes were to be written\); free some"
    ):
        copies.get(store.put("bucket/d", b"d" * 1000))
    assert held(copies) == {}, "all was tried"


def test_the_default_is_a_share_of_the_whole_disk_and_leaves_some_free(store, tmp_path, monkeypatch):
    """What is free at the moment says nothing: a cache that is full leaves little free, and would shrink each time."""
    usage = shutil.disk_usage(tmp_path)._replace(total=100_000, free=5_600)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    copies = Cache(tmp_path).shards
    assert (copies.max_bytes, copies.keep_free) == (50_000, 5_000)
    assert copies == Cache(tmp_path).shards
    for uri in fill(store, "ab", 500):
        copies.get(uri)
    assert set(held(copies)) == {"a", "b"}
    copies.get(store.put("bucket/c", b"c" * 1000))
    assert set(held(copies)) == {"b", "c"}, "400 bytes are missing: what was used longest ago goes for them"
    assert Cache(tmp_path, 777).shards == ShardCache(path=tmp_path / "shards", max_bytes=777)


def test_the_variable_names_the_folder_where_no_state_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("YT8M_CACHE", raising=False)
    assert Cache().path == tmp_path / ".cache/yt8m"
    monkeypatch.setenv("YT8M_CACHE", str(tmp_path / "disk"))
    assert Cache().path == tmp_path / "disk"


def test_a_cache_holds_something(tmp_path):
    with pytest.raises(ConfigError, match=r"cache\.max_bytes = 0: must be at least 1"):
        ShardCache(path=Path(tmp_path), max_bytes=0)


def test_a_small_file_is_read_whole_though_its_copy_goes_meanwhile(store, copies, monkeypatch):
    """An emptied copy must not be taken for the file: a list of classes would lose its end without a word."""
    a, *others = fill(store, "abcd")
    read = os.pread

    def pread(descriptor: int, size: int, place: int) -> bytes:
        while others:
            copies.get(others.pop())
        return read(descriptor, size, place)

    monkeypatch.setattr(framing.os, "pread", pread)
    assert framing.read_whole(a, copies) == b"a" * 1000
    assert others == []
