"""Rows F35-F39: a bucket that throttles, refuses, hangs, lies or breaks off."""

import logging
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.factory import SIZES, encode, frame_record, make_video
from tests.data.packing import pack_shards
from tests.storage.fake_store import FakeStore
from tests.storage.virtual_time import Clock
from tests.tiny import tiny_recipe
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import expand_patterns, list_shards
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.data.records.framing import ShardFile, local_file
from yt8m_assets.data.records.reader import iterate_records
from yt8m_assets.errors import CorruptShardError, MissingDataError, StorageError, TransientError
from yt8m_assets.stages.lineage import resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, cache, remote
from yt8m_assets.storage.retry import RetryPolicy

QUICK = RetryPolicy(request_seconds=2, deadline_seconds=2.5, first_delay_seconds=0.05, max_delay_seconds=0.2)
SHARD = frame_record(encode(make_video("aaaa", 3, [1]))) + frame_record(encode(make_video("bbbb", 2)))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def store(monkeypatch, tmp_path, clock):
    """A misbehaving store, with short patience and a cache of its own."""
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(remote, "_policy", QUICK)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield fake
    fake.close()


def media(method: str, path: str) -> bool:
    """Only requests for an object's bytes."""
    return method == "GET" and "alt=media" in path


def ids(uri: str) -> list[str]:
    return [video.video_id for video in read_shard(uri, feature_sizes=SIZES)]


def cached(tmp_path: Path) -> list[str]:
    return [entry.name for entry in (tmp_path / ".cache/yt8m/shards").iterdir() if not entry.name.startswith(".lock")]


@pytest.mark.parametrize("fault", [429, 503, 500, 502, 504, 408, "reset", "truncate"])
def test_f35_a_passing_fault_is_retried(store, fault, caplog):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.only = media if fault == "truncate" else store.only
    store.faults = [fault, fault, fault]
    with caplog.at_level(logging.WARNING, "yt8m_assets"):
        assert ids(uri) == ["aaaa", "bbbb"]
    assert not store.faults
    assert "attempt 2 follows" in caplog.text
    assert "SECRET-TOKEN" not in caplog.text


def test_f35_a_lasting_fault_ends_at_the_deadline(store, clock):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.always = 503
    with pytest.raises(
        TransientError, match=r"gs://bucket/a/s\.tfrecord: the store answered 503; gave up after \d+ att"
    ):
        ids(uri)
    assert QUICK.deadline_seconds - QUICK.max_delay_seconds < clock.seconds <= QUICK.deadline_seconds
    assert len(store.requests) > 10


def test_f35_pauses_grow_and_are_spread():
    policy = RetryPolicy(first_delay_seconds=1, max_delay_seconds=8)
    for attempt, bound in enumerate([1, 2, 4, 8, 8]):
        pauses = [policy.delay(attempt) for _ in range(200)]
        assert bound / 2 <= min(pauses) < 0.6 * bound
        assert 0.9 * bound < max(pauses) <= bound


@pytest.mark.parametrize("status", [401, 403])
def test_f36_a_refusal_is_not_retried_and_names_bucket_and_permission(store, status):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.always = status
    with pytest.raises(
        StorageError, match=rf"access denied \({status}\).*storage\.objects\.get on bucket 'bucket'"
    ) as caught:
        ids(uri)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert len(store.requests) <= 3  # an object is looked for by name, then as a folder
    with pytest.raises(StorageError, match=r"storage\.objects\.list"):
        expand_patterns("gs://bucket/a/*.tfrecord")


def test_f36_a_missing_object_is_not_retried(store):
    store.put("bucket/a/s.tfrecord", SHARD)
    with pytest.raises(MissingDataError, match=r"gs://bucket/a/none\.tfrecord: no such object"):
        ids("gs://bucket/a/none.tfrecord")
    assert len(store.requests) <= 3
    with pytest.raises(MissingDataError, match=r"gs://bucket/a/x\*: matches no shard; gs://bucket/a holds s\.tfrecord"):
        expand_patterns("gs://bucket/a/x*")


def test_f37_a_hang_ends_and_is_retried(store):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.hang_seconds, store.faults = 120.0, ["hang", None, "hang"]
    started = time.monotonic()
    assert ids(uri) == ["aaaa", "bbbb"]
    assert 2 * QUICK.request_seconds <= time.monotonic() - started < store.hang_seconds
    assert not store.faults


@pytest.mark.parametrize("fault", ["corrupt", "short"])
def test_f38_wrong_bytes_are_fetched_once_more(store, fault, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.only = media
    store.faults = [fault]
    assert ids(uri) == ["aaaa", "bbbb"]
    assert sum(media(method, path + "?alt=media") for method, path in store.requests if "/download/" in path) >= 2
    assert len(cached(tmp_path)) == 1


@pytest.mark.parametrize("fault", ["corrupt", "short"])
def test_f38_lastingly_wrong_bytes_are_an_error_and_leave_no_copy(store, fault, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.only, store.always = media, fault
    with pytest.raises(CorruptShardError, match=r"gs://bucket/a/s\.tfrecord.*twice"):
        ids(uri)
    assert cached(tmp_path) == []
    files, path = remote.open_filesystem(uri)
    with pytest.raises(CorruptShardError, match="twice"):
        files.cat_file(path)


def test_f38_a_record_damaged_before_its_upload_is_still_found(store):
    damaged = bytearray(SHARD)
    damaged[40] ^= 1
    uri = store.put("bucket/a/s.tfrecord", bytes(damaged))
    with pytest.raises(CorruptShardError, match="record 0 at byte 0: the checksum of the record's data is wrong"):
        ids(uri)


def test_f39_an_interrupted_upload_is_invisible_and_a_retry_succeeds(store, tmp_path):
    local = tmp_path / "weights"
    local.write_bytes(bytes(range(256)) * 40)
    store.only = lambda method, path: method == "POST"
    store.faults = ["reset", 503]
    files, _ = remote.open_filesystem("gs://bucket/root")
    files.put_file(local, "bucket/root/weights")
    assert store.objects == {"bucket/root/weights": local.read_bytes()}
    store.always = "reset"
    with pytest.raises(TransientError):
        files.put_file(local, "bucket/root/other")
    assert not files.exists("bucket/root/other")


def test_f39_an_upload_whose_answer_was_lost_counts_as_done(store):
    files, _ = remote.open_filesystem("gs://bucket/root")
    store.put("bucket/root/manifest.json", b"mine")
    files.pipe_file("bucket/root/manifest.json", b"mine", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file("bucket/root/manifest.json", b"theirs", mode="create")
    assert store.objects["bucket/root/manifest.json"] == b"mine"


def listings(store: FakeStore) -> int:
    return sum(path.endswith("/o") for _, path in store.requests)


@pytest.mark.parametrize(("page_size", "num_pages"), [(1000, 1), (50, 3)])
def test_listing_many_shards_takes_one_listing_a_pattern_and_no_request_a_shard(store, page_size, num_pages):
    """The size and checksum of each of 3844 shards come with the listing; one request each took minutes."""
    store.page_size = page_size
    for number in range(120):
        store.put(f"bucket/2/train{number:04d}.tfrecord", SHARD[:number])
        store.put(f"bucket/3/validate{number:04d}.tfrecord", SHARD)
    shards = list_shards(["gs://bucket/2/train*.tfrecord", "gs://bucket/3/validate*.tfrecord"])
    assert len(shards) == 240
    assert len(store.requests) == listings(store) == 2 * num_pages
    assert [listed.size for listed in shards.values()] == [*range(120), *[len(SHARD)] * 120]
    store.put("bucket/3/validate0007.tfrecord", SHARD[::-1])
    after = list_shards(["gs://bucket/2/train*.tfrecord", "gs://bucket/3/validate*.tfrecord"])
    assert after != shards, "another content of the same size is another version"


def test_asking_what_shards_there_are_now_costs_one_listing_a_pattern(store, tmp_path):
    """What `yt8m status`, the sensor and each pass ask of the real data."""
    for number in range(40):
        store.put(f"bucket/2/train{number:04d}.tfrecord", SHARD)
        store.put(f"bucket/3/validate{number:04d}.tfrecord", SHARD)
    patterns = {"pretraining": ("gs://bucket/2/train*.tfrecord",), "segments": ("gs://bucket/3/validate*.tfrecord",)}
    recipe = tiny_recipe()
    data = replace(
        recipe.data,
        simulation=None,
        test=patterns["segments"],
        segment_classes_uri=str(tmp_path / "classes.csv"),
        **patterns,
    )
    (tmp_path / "classes.csv").write_text("Index\n1\n")
    artifacts = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    for asset, num_patterns in (("pretraining_shards", 2), ("segment_shards", 1), ("test_shards", 1)):
        store.requests.clear()
        resolve_inputs(replace(recipe, data=data), artifacts, Node(asset))
        assert len(store.requests) == listings(store) == num_patterns


def test_what_a_run_reads_of_a_bucket_lies_in_its_cache_and_not_at_home(store, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    data = replace(tiny_recipe().data, feature_sizes=SIZES)
    reading = data.reading(ArtifactStore(str(tmp_path / "store"), tmp_path / "state").cache)
    videos = load_videos([uri], reading)
    assert [len(video.frames) for video in videos] == [3, 2]
    assert {path.name.split("-")[-1] for path in (tmp_path / "state").rglob("*.*")} >= {"s.tfrecord"}
    assert not (tmp_path / ".cache").exists()
    little = replace(reading, copies=cache.Cache(tmp_path / "little", 10).shards)
    with pytest.raises(StorageError, match=f"{len(SHARD)} bytes do not fit the cache .*little.* of 10; enlarge it"):
        load_videos([uri], little)


def test_what_an_object_is_costs_one_request(store):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    assert remote.stat(uri).size == len(SHARD)
    assert store.requests == [("GET", "/storage/v1/b/bucket/o/a/s.tfrecord")]


@pytest.mark.parametrize("fault", [503, "reset", "truncate", "short"])
def test_f39_a_download_keeps_the_ranges_that_it_has(store, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    content = bytes(range(256)) * 40
    uri = store.put("bucket/a/large", content)
    store.only, store.faults = media, [None, None, fault]
    remote.fetch_to(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    downloads = [path for _, path in store.requests if "/download/" in path]
    assert len(downloads) == 11 + 1


def test_f35_a_listing_of_many_pages_keeps_the_pages_that_it_has(store, clock):
    """And its deadline is that of a page: all of them together may take longer."""
    for number in range(40):
        store.put(f"bucket/2/train{number:04d}.tfrecord", SHARD)
    store.page_size, store.faults = 4, [None, *[503] * 8] * 6
    assert len(remote.glob_uris("gs://bucket/2/train*.tfrecord")) == 40
    assert clock.seconds > QUICK.deadline_seconds
    assert listings(store) == 10 + 48


def test_f37_a_request_without_answer_is_ended(store):
    """However long the other side holds the line."""
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.hang_seconds, store.faults = 120.0, ["hang"]
    started = time.monotonic()
    assert remote.stat(uri).size == len(SHARD)
    assert time.monotonic() - started < store.hang_seconds


def _get(folder: Path, uri: str, barrier: threading.Barrier, found: list[bytes]) -> None:
    barrier.wait(30)
    found.append(cache.ShardCache(path=folder, max_bytes=10**6).get(uri).read_bytes())


def test_of_many_readers_one_fetches_a_shard_and_the_others_wait(store, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    store.before = lambda method, path, body: time.sleep(0.1 if "/download/" in path else 0)
    barrier, found = threading.Barrier(6), []
    readers = [threading.Thread(target=_get, args=(tmp_path / "cache", uri, barrier, found)) for _ in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [SHARD] * 6
    assert sum("/download/" in path for _, path in store.requests) == 1


@pytest.mark.parametrize("place", [2, 20, -2])
def test_f38_a_copy_that_rotted_on_this_disk_is_fetched_again(store, tmp_path, place):
    """In a record's length, in its data, in its checksum; the object itself is sound."""
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    reading = Reading(feature_sizes=SIZES)
    (copy,) = {path for _ in ids(uri) for path in (tmp_path / ".cache/yt8m/shards").glob("*-s.tfrecord")}
    rotten = bytearray(SHARD)
    rotten[place] ^= 1
    copy.write_bytes(rotten)
    assert ids(uri) == ["aaaa", "bbbb"]
    assert copy.read_bytes() == SHARD
    copy.write_bytes(rotten)
    assert build_index(uri, reading).ids.tolist() == [b"aaaa", b"bbbb"]
    shards = pack_shards(tmp_path / "index", [uri], reading)
    copy.write_bytes(rotten)
    videos = IndexedVideos(shards)
    assert [videos.read(number).shape[0] for number in range(2)] == [3, 2]
    repairs = 2 if place == 2 else 3  # a record read by its index needs no length
    assert sum("/download/" in path for _, path in store.requests) == 1 + repairs


def test_f38_an_object_that_changed_meanwhile_does_not_heal_a_copy(store, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    records = iterate_records(uri)
    next(records)
    (copy,) = (tmp_path / ".cache/yt8m/shards").glob("*-s.tfrecord")
    copy.write_bytes(SHARD[:-1] + b"x")
    store.put("bucket/a/s.tfrecord", frame_record(encode(make_video("cccc", 3, [1]))) * 2)
    with pytest.raises(CorruptShardError, match="record 1"):
        next(records)


def test_an_object_that_a_listing_described_is_opened_without_asking_again(store, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    (described,) = remote.glob_uris("gs://bucket/a/*").values()
    store.requests.clear()
    copies = cache.ShardCache(path=tmp_path / "copies", max_bytes=10**6)
    assert ShardFile(uri, copies, described).read(0, len(SHARD)) == SHARD
    assert [path for _, path in store.requests] == ["/download/storage/v1/b/bucket/o/a/s.tfrecord"]
    store.requests.clear()
    assert ShardFile(uri, copies, described).read(0, len(SHARD)) == SHARD
    assert local_file(uri, copies, described).read_bytes() == SHARD
    assert store.requests == []
    assert local_file(uri, copies) == local_file(uri, copies, described), "one copy, whoever says what the object is"


def test_f38_a_listed_objects_rotten_copy_is_fetched_again_without_asking(store, tmp_path):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    described, copies = remote.stat(uri), cache.ShardCache(path=tmp_path / "copies", max_bytes=10**6)
    copy = copies.get(uri, described)
    copy.write_bytes(SHARD[:-1] + b"x")
    store.requests.clear()
    records = list(iterate_records(uri, file=ShardFile(uri, copies, described)))
    assert [bytes(view) for _, _, view, _ in records] == [
        encode(make_video("aaaa", 3, [1])),
        encode(make_video("bbbb", 2)),
    ]
    assert [path for _, path in store.requests] == ["/download/storage/v1/b/bucket/o/a/s.tfrecord"]


@pytest.mark.parametrize("content", [SHARD[::-1], SHARD[:-9], b""])
def test_an_object_that_changed_since_it_was_listed_is_no_copy_of_it(store, tmp_path, content):
    uri = store.put("bucket/a/s.tfrecord", SHARD)
    described, copies = remote.stat(uri), cache.ShardCache(path=tmp_path / "copies", max_bytes=10**6)
    store.put("bucket/a/s.tfrecord", content)
    with pytest.raises(CorruptShardError, match=r"gs://bucket/a/s\.tfrecord.* has changed since .*; run again"):
        copies.get(uri, described)
    assert copies.get(uri).read_bytes() == content
    assert len([path for path in copies.path.iterdir() if not path.name.startswith(".lock-")]) == 1
