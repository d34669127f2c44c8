"""Credentials of a store: renewed where that can help, named where it cannot, left out where nobody needs them."""

import json
import logging
import os
import subprocess
import sys

import gcsfs.core
import pytest
from crc32c import crc32c
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcsfs.extended_gcsfs import BucketType
from google.api_core.exceptions import Forbidden, ServiceUnavailable, TooManyRequests

from tests.storage.fake_store import FakeStore
from yt8m_assets.errors import StorageError, TransientError
from yt8m_assets.recipes import load_recipe
from yt8m_assets.storage import connection, remote
from yt8m_assets.storage.remote import RemoteFiles
from yt8m_assets.storage.retry import RetryPolicy

PATIENT = RetryPolicy(request_seconds=2, deadline_seconds=5, first_delay_seconds=0.02, max_delay_seconds=0.1)
HASTY = RetryPolicy(request_seconds=2, deadline_seconds=0.4, first_delay_seconds=0.02, max_delay_seconds=0.1)


@pytest.fixture(scope="module")
def private_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.fixture
def store(monkeypatch, tmp_path, private_key):
    """A store that asks for access tokens, in place of Google's, and a service account's file that its server knows."""
    fake = FakeStore()
    fake.tokens = set()
    path = tmp_path / "account.json"
    account = {"type": "service_account", "client_email": "me@project.iam", "private_key": private_key}
    path.write_text(json.dumps(account | {"token_uri": f"{fake.url}/token", "project_id": "p", "private_key_id": "1"}))
    monkeypatch.setattr(gcsfs.core, "_location", lambda mtls: fake.url)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv(connection.ZONAL, "false")  # this store speaks no gRPC
    fake.put("bucket/object", b"content")
    connection._connect.cache_clear()
    yield fake
    connection._connect.cache_clear()
    fake.close()


def token_requests(store: FakeStore) -> int:
    return sum(path == "/token" for _, path in store.requests)


@pytest.mark.parametrize("status", [400, 401, pytest.param(503, marks=pytest.mark.slow)])  # google waits at a 503
def test_a_renewal_of_the_token_that_fails_at_first_is_made_again(store, status, caplog):
    store.token_faults = [status] * 4
    with caplog.at_level(logging.WARNING, "yt8m_assets"):
        assert RemoteFiles("gs", PATIENT).cat_file("bucket/object") == b"content"
    assert not store.token_faults
    assert "account.json could not be renewed" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_token_that_the_store_no_longer_takes_is_renewed(store, caplog):
    files = RemoteFiles("gs", PATIENT)
    files.stat("bucket/object")
    assert token_requests(store) == 1
    store.tokens = set()  # revoked long before it expires
    with caplog.at_level(logging.WARNING, "yt8m_assets"):
        assert files.cat_file("bucket/object", 0, 3) == b"con"
    assert token_requests(store) == 2
    assert "gs://bucket/object: the credentials file" in caplog.text


def test_a_server_of_tokens_that_is_away_is_waited_for_and_is_a_passing_fault(store, tmp_path, monkeypatch):
    account = json.loads((tmp_path / "account.json").read_text())
    (tmp_path / "away.json").write_text(json.dumps(account | {"token_uri": "http://127.0.0.1:9/token"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "away.json"))
    files = RemoteFiles("gs", HASTY)
    with pytest.raises(TransientError, match=r"server of access tokens cannot be reached; gave up after \d+ attempts"):
        files.stat("bucket/object")
    credentials = files.filesystem("bucket/object").credentials.credentials
    assert credentials is not None
    credentials._token_uri = f"{store.url}/token"
    assert files.stat("bucket/object").size == 7


def test_credentials_that_stay_stale_are_an_error_that_names_their_file(store):
    store.token_faults = [400] * 1000
    with pytest.raises(StorageError, match=r"access denied \(401\); the credentials file .*account\.json: ") as caught:
        RemoteFiles("gs", HASTY).cat_file("bucket/object")
    assert 2 < token_requests(store) < 100
    assert "storage.objects.get on bucket 'bucket'" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_refusal_is_not_a_stale_token(store):
    files = RemoteFiles("gs", PATIENT)
    files.stat("bucket/object")
    store.requests.clear()
    store.always = 403
    with pytest.raises(StorageError, match=r"access denied \(403\).*account\.json"):
        files.stat("bucket/object")
    assert len(store.requests) <= 4  # gcsfs looks for an object by name, in a list, and as a folder
    assert token_requests(store) == 0


@pytest.mark.parametrize("by_setting", [False, True])
def test_public_buckets_are_read_without_the_stale_credentials_of_this_machine(store, monkeypatch, by_setting):
    store.token_faults = [400] * 1000
    bucket = "mine" if by_setting else "youtube8m-ml-us-east1"
    if by_setting:
        monkeypatch.setenv(connection.ANONYMOUS_BUCKETS, "other, mine")
    store.put(f"{bucket}/2/frame/train/train00.tfrecord", b"shard")
    store.tokens = None
    found = RemoteFiles("gs", PATIENT).glob(f"{bucket}/2/frame/train/train*.tfrecord")
    assert [described.size for described in found.values()] == [5]
    assert token_requests(store) == 0


def test_the_challenge_reads_public_buckets_only():
    data = load_recipe("challenge").data
    patterns = (*data.pretraining, *data.segments, *data.test)
    assert patterns
    assert all(connection.is_public(pattern.split("/")[2]) for pattern in patterns)


def test_an_anonymous_refusal_says_so_and_a_later_login_is_seen(store, monkeypatch, tmp_path):
    good = str(tmp_path / "account.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    files = RemoteFiles("gs", PATIENT)
    with pytest.raises(
        StorageError, match=r"\(401\); no credentials \(the credentials file .*none\.json cannot be used"
    ):
        files.stat("bucket/object")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", good)
    assert files.stat("bucket/object").size == 7


@pytest.mark.parametrize("message", ["invalid argument", "Bucket is a requester pays bucket", "something else"])
def test_a_request_that_makes_no_sense_to_the_store_is_a_typed_error_that_names_the_uri(store, message):
    files = RemoteFiles("gs", PATIENT)
    store.only, store.always = lambda method, path: "/o" in path, (400, message)
    with pytest.raises(StorageError, match=r"gs://bucket/object: the store .*400") as caught:
        files.stat("bucket/object")
    assert ("readers pay" in str(caught.value)) == ("pays" in message)
    with pytest.raises(StorageError, match=r"gs://bucket/a\*: the store .*400"):
        files.glob("bucket/a*")


@pytest.fixture
def kinds(monkeypatch):
    """The names of the classes that a connection is of, for a bucket and a setting of gcsfs's variable."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)

    def find(bucket: str, setting: str | None) -> set[str]:
        connection._connect.cache_clear()
        if setting is None:
            monkeypatch.delenv(connection.ZONAL, raising=False)
        else:
            monkeypatch.setenv(connection.ZONAL, setting)
        return {kind.__name__ for kind in type(connection.connect(bucket, HASTY)).__mro__}

    yield find
    connection._connect.cache_clear()


@pytest.mark.parametrize(
    ("bucket", "setting", "zonal"),
    [("mine", None, True), ("mine", "true", True), ("mine", "false", False), ("youtube8m-ml", None, False)],
)
def test_zonal_buckets_are_served_unless_nobody_or_an_emulator_would_answer(kinds, bucket, setting, zonal):
    assert ("ExtendedGcsFileSystem" in kinds(bucket, setting)) == zonal
    assert os.environ.get(connection.ZONAL) == setting, "others of this process see what the user set"


def test_emulators_are_not_asked_what_a_bucket_is(kinds, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    assert "ExtendedGcsFileSystem" not in kinds("mine", "true")


def test_what_a_bucket_is_is_asked_once_whatever_comes_of_it(kinds, monkeypatch):
    """Where gRPC does not get through, each answer takes half a minute."""
    assert kinds("mine", None)
    files, asked = connection.connect("mine", HASTY), []

    async def unknown(bucket: str) -> object:
        asked.append(bucket)
        return BucketType.UNKNOWN

    monkeypatch.setattr(files, "_get_bucket_type", unknown)
    assert not any(connection.is_zonal(files, "mine/object") for _ in range(3))
    assert asked == ["mine"]


def test_what_lies_in_a_zonal_bucket_is_read_and_written_by_gcsfs(kinds, monkeypatch, tmp_path):
    """Through gRPC, which the plain requests of downloads and uploads do not speak; what it throws may pass, too."""
    assert kinds("mine", None)
    files, content = connection.connect("mine", HASTY), bytes(range(256)) * 40
    faults: list[Exception] = [ServiceUnavailable("later"), TooManyRequests("later")]

    async def zonal(bucket: str) -> object:
        return BucketType.ZONAL_HIERARCHICAL

    def cat_file(path: str, start: int, end: int) -> bytes:
        if faults:
            raise faults.pop()
        return content[start:end]

    monkeypatch.setattr(files, "_get_bucket_type", zonal)
    monkeypatch.setattr(files, "cat_file", cat_file)
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "put_file", lambda local, path: written.append((local, path)))
    described = remote.RemoteStat(len(content), crc32c(content), "1")
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    store = RemoteFiles("gs", PATIENT)
    monkeypatch.setattr(store, "filesystem", lambda path: files)
    monkeypatch.setattr(store, "stat", lambda path: described)
    store.get_file("mine/object", tmp_path / "copy", described)
    assert (tmp_path / "copy").read_bytes() == content
    store.put_file(tmp_path / "copy", "mine/other")
    assert written == [(str(tmp_path / "copy"), "mine/other")]
    faults.append(Forbidden("no"))
    with pytest.raises(StorageError, match=r"access denied \(403\)"):
        store.get_file("mine/object", tmp_path / "copy", described)


_TOGETHER = """
import threading
from yt8m_assets.storage import connection
from yt8m_assets.storage.retry import RetryPolicy

made, policy, start = [], RetryPolicy(), threading.Barrier(8)

def connect():
    start.wait()
    made.append(connection.connect("bucket", policy))

threads = [threading.Thread(target=connect) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(made), len(set(map(id, made))))
"""


def test_threads_that_connect_first_and_at_once_get_one_connection():
    """In a process of its own, which has not imported gcsfs yet."""
    env = {**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", _TOGETHER], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["8", "1"], "")
