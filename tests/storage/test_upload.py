"""Uploads in chunks over a store that breaks off: nothing that arrived is sent again."""

import os

import pytest

from tests.storage.fake_store import FakeStore
from tests.storage.virtual_time import Clock
from yt8m_assets.errors import CorruptShardError, TransientError
from yt8m_assets.storage import upload
from yt8m_assets.storage.remote import RemoteFiles
from yt8m_assets.storage.retry import RetryPolicy

CHUNK = 4 * 2**18
GIVEN = upload.CHUNK_BYTES
POLICY = RetryPolicy(request_seconds=2, deadline_seconds=0.8, first_delay_seconds=0.02, max_delay_seconds=0.05)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def store(monkeypatch, clock):
    fake = FakeStore()
    fake.hang_seconds = 60.0
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(upload, "CHUNK_BYTES", CHUNK)
    fake.only = lambda method, path: "upload_id" in path
    yield fake
    fake.close()


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(5 * CHUNK + 12345))
    return path


def put(store: FakeStore, local) -> None:
    RemoteFiles("gs", POLICY).put_file(local, "bucket/a/model.safetensors")
    assert store.objects["bucket/a/model.safetensors"] == local.read_bytes()


def test_a_file_is_sent_in_chunks_each_once(store, local):
    put(store, local)
    assert store.sent == [(first, min(CHUNK, local.stat().st_size - first)) for first in range(0, 6 * CHUNK, CHUNK)]


def test_a_chunk_is_whole_granules_and_more_than_a_single_request() -> None:
    """Else the store takes less of it than was sent."""
    assert GIVEN % upload._GRANULE == 0
    assert GIVEN > upload.SINGLE_BYTES


def test_a_small_file_takes_one_request(store, tmp_path):
    small = tmp_path / "small"
    small.write_bytes(bytes(upload.SINGLE_BYTES))
    put(store, small)
    assert [path for method, path in store.requests if method != "GET"] == ["/upload/storage/v1/b/bucket/o"]


@pytest.mark.parametrize("fault", [503, "reset", "hang"])
def test_a_chunk_that_did_not_arrive_is_sent_again_and_no_other(store, local, fault):
    store.faults = [None, None, fault]
    put(store, local)
    firsts = [first for first, _ in store.sent]
    assert firsts == [0, CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK, 5 * CHUNK]
    assert len(store.sessions) == 1


def test_half_a_chunk_that_arrived_is_not_sent_again(store, local):
    store.faults = [None, "half", None, None]
    put(store, local)
    assert [first for first, _ in store.sent][:3] == [0, CHUNK, CHUNK + CHUNK // 2]


@pytest.mark.parametrize("number", [1, 5])
def test_an_answer_that_got_lost_costs_a_question(store, local, number):
    store.faults = [None] * number + ["unheard"]
    put(store, local)
    assert len(store.sent) == 6


def test_the_deadline_counts_from_the_last_progress(store, local, clock):
    """It passes several times over while every chunk is refused for long; each arrives before the deadline."""
    store.faults = [None, *([503] * 14 + [None, None]) * 6]  # the last two: how far the upload got, and the chunk
    put(store, local)
    assert clock.seconds > 2 * POLICY.deadline_seconds


def test_a_store_that_takes_nothing_more_is_given_up(store, local, clock):
    store.faults, store.always = [None, None], 503
    with pytest.raises(TransientError, match=r"gs://bucket/a/model\.safetensors: the store answered 503; gave up"):
        put(store, local)
    assert POLICY.deadline_seconds - POLICY.max_delay_seconds < clock.seconds <= POLICY.deadline_seconds
    assert len(store.sent) == 2


def test_answers_about_an_upload_are_no_progress(store, local, clock):
    """Each chunk is refused; each question how far it got is answered."""
    store.faults = [None, *([503, None] * 200)]
    with pytest.raises(TransientError, match="gave up"):
        put(store, local)
    assert clock.seconds <= POLICY.deadline_seconds


def test_a_session_that_the_store_lost_begins_again(store, local):
    store.faults = [None, 410]
    put(store, local)
    assert len(store.sessions) == 2
    store.always = 410
    with pytest.raises(TransientError, match="lost the upload 3 times"):
        put(store, local)


def test_what_arrived_is_compared_with_what_was_sent(store, local, monkeypatch):
    """The store's checksum is not the file's: once more, then an error."""
    describe = FakeStore._describe
    answers = []

    def changed(self, name):
        answers.append(describe(self, name) | {"crc32c": "AAAAAA=="})
        return answers[-1]

    monkeypatch.setattr(FakeStore, "_describe", changed)
    with pytest.raises(CorruptShardError, match="crc32c is not that of the file, twice"):
        put(store, local)
    small = local.with_name("small")
    small.write_bytes(b"small")
    with pytest.raises(CorruptShardError, match="crc32c is not that of the file, twice"):
        put(store, small)
    monkeypatch.setattr(FakeStore, "_describe", lambda self, name: describe(self, name) | {"size": "1"})
    with pytest.raises(CorruptShardError, match="the store holds 1 bytes of 5, twice"):
        put(store, small)
