"""The suite over a folder, fsspec's memory, a strict bucket and an independent emulator of one."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.places import Emulated, Folder, Memory, Strict, fake_bucket
from tests.storage.suite import FILES, KEY, StoreSuite, contents, manifest_name, publish
from yt8m_assets.errors import CorruptArtifactError, PartitionBusyError
from yt8m_assets.storage import ArtifactStore


class TestFolder(StoreSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path / "root")

    def test_everything_is_on_the_disk_before_the_manifest_names_it(self, store, place, monkeypatch) -> None:
        synced: list[str] = []
        real_sync, real_link = os.fsync, os.link

        def sync(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            real_sync(descriptor)

        def link(source: Path, target: Path) -> None:
            synced.append(f"link {source}")
            real_link(source, target)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "link", link)
        publish(store)
        linked = next(number for number, path in enumerate(synced) if path.startswith("link "))
        before = synced[:linked]
        assert {Path(path).name for path in before} >= {Path(name).name for name in FILES}
        assert synced[linked].removeprefix("link ") in before, "the manifest's own bytes"
        assert str(place.root / KEY) in before, "the rename of the folder"
        assert str(place.root / KEY) in synced[linked:], "the link of the manifest"

    def test_a_second_writer_is_told_to_wait(self, store, place, machine) -> None:
        with store.publish(KEY, fingerprint="f"), pytest.raises(PartitionBusyError, match=KEY):
            publish(ArtifactStore(place.root_uri, machine))


class Bucket(StoreSuite):
    """What is promised of copies on this machine, beyond the suite."""

    def test_a_damaged_copy_is_fetched_again_once(self, store, place, machine, caplog) -> None:
        manifest = publish(store)
        copy = store.fetch(manifest) / "weights.bin"
        for damaged in (b"\x00\x01 weightX", b"", b"longer than it was"):
            copy.write_bytes(damaged)
            assert contents(ArtifactStore(place.root_uri, machine), manifest) == FILES
            assert "fetching it again" in caplog.text
            caplog.clear()
        raw = f"{KEY}/{manifest.folder}/weights.bin"
        place.write(raw, b"\x00\x01 weightX")
        copy.unlink()
        with pytest.raises(CorruptArtifactError, match=rf"{place.root_uri}/{raw}: twice"):
            ArtifactStore(place.root_uri, machine).fetch(manifest)

    def test_copies_of_what_is_gone_go_too(self, store, machine) -> None:
        manifest = publish(store)
        folder = store.fetch(manifest)
        store.delete(KEY)
        assert not folder.exists()


class TestMemory(Bucket):
    @pytest.fixture
    def place(self) -> Memory:
        return Memory(f"suite-{secrets.token_hex(4)}/root")


class TestStrictBucket(Bucket):
    @pytest.fixture
    def place(self) -> Iterator[Strict]:
        with fake_bucket("deep/root") as place:
            yield place

    def test_a_manifest_that_appears_in_the_last_moment_is_not_overwritten(self, store, place) -> None:
        """After the look whether it is there, before the write: only the store's own precondition is left."""
        name = f"{KEY}/manifest-000001.json"
        theirs = publish(ArtifactStore("memory://elsewhere/in-between", store.cache_path), fingerprint="theirs")

        def overtake(method: str, path: str, body: bytes) -> None:
            if method == "POST" and b"manifest-000001.json" in body and name not in place.names():
                for file, content in FILES.items():
                    place.write(f"{KEY}/{theirs.folder}/{file}", content)
                place.write(name, theirs.to_bytes())

        place.fake.before = overtake
        mine = publish(store, fingerprint="mine")
        assert place.read(name) == theirs.to_bytes()
        assert mine.generation == 2
        assert place.read(manifest_name(mine)) == mine.to_bytes()

    def test_the_manifest_is_written_last(self, store, place) -> None:
        publish(store)
        written: list[bytes] = []
        place.fake.before = lambda method, path, body: written.append(body) if method == "POST" else None
        publish(store, fingerprint="f2")
        assert len(written) == len(FILES) + 1
        assert b"manifest-000002.json" in written[-1]

    def test_a_written_manifest_whose_answer_got_lost_is_ones_own(self, store, place) -> None:
        place.fake.only = lambda method, path: method == "POST"
        place.fake.faults = [None] * len(FILES) + ["unheard"]
        manifest = publish(store)
        assert manifest.generation == 1
        assert not place.fake.faults
        assert store.require(KEY) == manifest


class TestEmulatedBucket(Bucket):
    enforces_creation = False

    @pytest.fixture
    def place(self, emulator: str, monkeypatch: pytest.MonkeyPatch) -> Emulated:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
        return Emulated(emulator, f"suite-{secrets.token_hex(4)}")
