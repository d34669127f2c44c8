"""What planning asks of a bucket: a listing an asset, manifests once a machine, and never what is no longer true."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.fake_store import FakeStore
from yt8m_assets.storage import ArtifactStore, Manifest, remote
from yt8m_assets.storage.retry import RetryPolicy
from yt8m_assets.storage.soundness import damage

KEYS = [f"{asset}/{model}" for asset in ("alpha", "beta", "gamma") for model in ("one", "two", "three")]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    fake = FakeStore()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
    monkeypatch.setattr(remote, "_policy", RetryPolicy(request_seconds=5, deadline_seconds=5))
    yield fake
    fake.close()


def open_store(tmp_path: Path, machine: str = "machine") -> ArtifactStore:
    return ArtifactStore("gs://bucket/root", tmp_path / machine)


def put(store: ArtifactStore, key: str, text: str = "") -> Manifest:
    with store.publish(key, fingerprint=f"{key}{text}") as publication:
        (publication.path / "file").write_text(key + text)
        (publication.report_path / "page").write_text(key)
    assert publication.manifest is not None
    return publication.manifest


def look(store: ArtifactStore) -> list[Manifest | None]:
    return [store.find(key, key) for key in KEYS]


def test_a_glance_sees_what_the_store_holds(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    made = [put(store, key) for key in KEYS]
    put(store, "alpha/one", "again")
    assert look(store.at_a_glance()) == look(store) == made
    seen = store.at_a_glance()
    assert seen.numbers("alpha/one") == [1, 2]
    assert seen.numbers("alpha/four") == seen.numbers("delta") == []
    assert seen.list_keys("beta") == store.list_keys("beta") == ["beta/one", "beta/three", "beta/two"]
    assert [damage(seen, manifest) for manifest in made] == [[]] * len(made)
    bucket.requests.clear()
    there = open_store(tmp_path, "another").at_a_glance()
    assert (there.fetch(made[0]) / "file").read_text() == "alpha/one"
    asked = [path.rsplit("/", 1)[-1] for _, path in bucket.requests if not path.endswith("/o")]
    assert [name for name in asked if not name.startswith("manifest-")] == ["file"], "the listing said what it is"


def test_it_costs_a_listing_an_asset_and_each_manifest_once_a_machine(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for key in KEYS:
        put(store, key)
    bucket.requests.clear()
    look(open_store(tmp_path, "another").at_a_glance())
    listings = [path for _, path in bucket.requests if path.endswith("/o")]
    assert len(listings) == 3 + 1  # and the root's, which names the assets
    assert len(bucket.requests) == len(listings) + len(KEYS)
    bucket.requests.clear()
    look(open_store(tmp_path, "another").at_a_glance())
    assert len(bucket.requests) == 3 + 1


def test_a_single_artifact_brings_no_other_asset_along(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for key in KEYS:
        put(store, key)
    bucket.requests.clear()
    assert open_store(tmp_path, "another").at_a_glance().find("beta/two", "beta/two")
    assert sum(path.endswith("/o") for _, path in bucket.requests) == 1


def test_the_next_glance_sees_what_was_published_and_removed_since(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, "alpha/one")
    first = store.at_a_glance()
    assert first.numbers("alpha/two") == []
    put(store, "alpha/two")
    assert first.numbers("alpha/two") == [], "what it has answered it goes on to answer"
    assert first.at_a_glance().numbers("alpha/two") == [1]
    store.delete("alpha/one")
    assert store.at_a_glance().find("alpha/one", "alpha/one") is None


def test_a_number_that_is_given_again_is_another_manifest(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, "alpha/one")
    assert look(store.at_a_glance())[0] is not None
    store.delete("alpha/one")
    put(store, "alpha/one", "other")
    seen = store.at_a_glance()
    assert seen.numbers("alpha/one") == [1]
    assert look(seen)[0] is None
    assert seen.find("alpha/one", "alpha/oneother") is not None


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 700])
def test_a_kept_manifest_that_rotted_here_is_read_again(bucket: FakeStore, tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path)
    put(store, "alpha/one")
    assert look(store.at_a_glance())[0] is not None
    for path in (tmp_path / "machine" / "manifests").iterdir():
        path.write_bytes(content)
    assert look(store.at_a_glance())[0] is not None


def test_a_file_that_is_missing_in_the_bucket_is_damage(bucket: FakeStore, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    manifest = put(store, "alpha/one")
    del bucket.objects[f"bucket/root/alpha/one/{manifest.folder}/file"]
    assert look(store.at_a_glance())[0] is None
    assert damage(store.at_a_glance(), manifest) == damage(store, manifest) != []


def test_a_folder_of_this_machine_is_looked_at_as_it_is(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    assert store.at_a_glance() is store
