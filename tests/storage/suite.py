"""What every place for artifacts promises (docs/decisions/0001), whoever implements it.

Derive a class whose `place` fixture is an empty place; its helpers go around the store under test.
"""

import json
import threading
from pathlib import Path

import pytest

from tests.storage.places import Place
from yt8m_assets.errors import (
    CorruptArtifactError,
    LaterVersionError,
    MissingArtifactError,
    PartitionBusyError,
    StorageError,
)
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.storage.manifest import content_digest, sha256_text

KEY = "asset/model"
FILES = {"weights.bin": b"\x00\x01 weights", "sub/table.csv": b"a,b\n", "report/plot.svg": b"<svg/>"}


def publish(store: ArtifactStore, key: str = KEY, fingerprint: str = "f1", files: dict[str, bytes] = FILES) -> Manifest:
    """Publish files as an artifact."""
    with store.publish(key, fingerprint=fingerprint, parents={"up": "d"}, config={"a": 1}) as publication:
        for name, content in files.items():
            path = publication.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        publication.metadata["map"] = 0.5
    assert publication.manifest is not None
    return publication.manifest


def contents(store: ArtifactStore, manifest: Manifest) -> dict[str, bytes]:
    """Name -> bytes of an artifact's files, as the store hands them out."""
    folder = store.fetch(manifest, tuple(manifest.files))
    return {name: (folder / name).read_bytes() for name in manifest.files}


def manifest_name(manifest: Manifest) -> str:
    return f"{manifest.key}/manifest-{manifest.generation:06d}.json"


class StoreSuite:
    """The promises; each test gets a place of its own."""

    enforces_creation = True
    """Whether the place itself refuses to create what is there; an emulator that does not leaves races untold."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Path:
        """Folder of this machine for caches."""
        return tmp_path / "machine"

    @pytest.fixture
    def store(self, place: Place, machine: Path) -> ArtifactStore:
        return ArtifactStore(place.root_uri, machine)

    def test_what_is_published_lies_there_byte_for_byte_and_nothing_else(self, store, place) -> None:
        manifest = publish(store)
        expected = {f"{KEY}/{manifest.folder}/{name}": content for name, content in FILES.items()}
        assert place.names() == sorted([*expected, manifest_name(manifest)])
        assert {name: place.read(name) for name in expected} == expected
        assert store.uri(manifest, "weights.bin") == f"{place.root_uri}/{KEY}/{manifest.folder}/weights.bin"

    def test_the_manifest_says_what_was_given(self, store, place) -> None:
        manifest = publish(store)
        values = json.loads(place.read(manifest_name(manifest)))
        assert (values["key"], values["generation"], values["fingerprint"]) == (KEY, 1, "f1")
        assert (values["parents"], values["config"], values["metadata"]) == ({"up": "d"}, {"a": 1}, {"map": 0.5})
        assert values["digest"] == content_digest(manifest.files)
        assert {name: entry["size"] for name, entry in values["files"].items()} == {n: len(c) for n, c in FILES.items()}

    def test_any_machine_reads_it_back(self, store, place, tmp_path) -> None:
        manifest = publish(store)
        other = ArtifactStore(place.root_uri, tmp_path / "other machine")
        assert other.require(KEY) == manifest
        assert contents(other, manifest) == FILES
        assert list(other.fetch(manifest, only=("sub/table.csv",)).rglob("table.csv"))

    def test_nothing_is_visible_before_the_block_ends_nor_after_it_failed(self, store, place, machine) -> None:
        def manifests() -> list[str]:
            return [name for name in place.names() if "manifest-" in name]

        with pytest.raises(ZeroDivisionError), store.publish(KEY, fingerprint="f") as publication:
            (publication.path / "weights.bin").write_bytes(b"half")
            assert ArtifactStore(place.root_uri, machine).manifest(KEY) is None
            assert manifests() == []
            raise ZeroDivisionError
        assert place.names() == []
        assert not [path for path in machine.rglob("*") if path.is_file()]
        old = publish(store)
        with pytest.raises(ZeroDivisionError), store.publish(KEY, fingerprint="f2"):
            raise ZeroDivisionError
        assert store.require(KEY) == old
        assert manifests() == [manifest_name(old)]

    @pytest.mark.parametrize("damage", ["flip", "cut", "append", "remove"])
    @pytest.mark.parametrize("name", FILES)
    def test_a_damaged_file_is_refused_by_name(self, store, place, tmp_path, damage, name) -> None:
        manifest = publish(store)
        raw = f"{KEY}/{manifest.folder}/{name}"
        content = place.read(raw)
        if damage == "remove":
            place.remove(raw)
        else:
            changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "cut": content[:-1], "append": content + b"x"}
            place.write(raw, changed[damage])
        reader = ArtifactStore(place.root_uri, tmp_path / "reader")
        for _ in range(2):
            with pytest.raises(CorruptArtifactError, match=Path(name).name):
                reader.fetch(manifest, tuple(manifest.files))
        place.write(raw, content)
        assert contents(reader, manifest) == FILES, "once it is repaired it is read"

    @pytest.mark.parametrize("damage", ["field", "cut", "key", "schema", "escape"])
    def test_a_damaged_manifest_is_refused_and_not_skipped(self, store, place, damage) -> None:
        publish(store)
        name = manifest_name(publish(store, fingerprint="f2"))
        values = json.loads(place.read(name))
        checksum = values.pop("checksum")
        changes = {"field": {"fingerprint": "x"}, "key": {"key": "other"}, "schema": {"schema": 99}}
        changes["escape"] = {"folder": "../../etc"}
        values |= changes.get(damage, {})
        if damage in ("key", "escape"):  # whole by its own checksum, and wrong all the same
            checksum = sha256_text(json.dumps(values, sort_keys=True, separators=(",", ":")))
        content = json.dumps(values | {"checksum": checksum}).encode()
        place.write(name, content[:40] if damage == "cut" else content)
        error = {"escape": StorageError, "schema": LaterVersionError}.get(damage, CorruptArtifactError)
        with pytest.raises(error):
            store.manifest(KEY)

    def test_what_exists_is_never_created_again(self, store, place) -> None:
        store.backend.create_exclusive(f"{KEY}/manifest-000001.json", b"first")
        with pytest.raises(FileExistsError):
            store.backend.create_exclusive(f"{KEY}/manifest-000001.json", b"second")
        assert place.read(f"{KEY}/manifest-000001.json") == b"first"
        assert place.names() == [f"{KEY}/manifest-000001.json"]

    def test_of_many_writers_exactly_one_gets_a_number(self, store, place) -> None:
        if not self.enforces_creation:
            pytest.skip("this emulator ignores ifGenerationMatch")
        won: list[int] = []
        barrier = threading.Barrier(8)

        def create(number: int) -> None:
            barrier.wait(30)
            try:
                store.backend.create_exclusive("race/manifest-000001.json", b"%d" % number * 1000)
                won.append(number)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert place.read("race/manifest-000001.json") == b"%d" % won[0] * 1000

    def test_a_writer_in_between_is_refused_or_gets_a_number_of_its_own(self, store, place, machine) -> None:
        """Never the same number, never one's files under the other's manifest."""
        with store.publish(KEY, fingerprint="slow") as slow:
            (slow.path / "file").write_bytes(b"slow")
            try:
                quick = publish(ArtifactStore(place.root_uri, machine), fingerprint="quick", files={"file": b"quick"})
            except PartitionBusyError:
                quick = None
        assert slow.manifest is not None
        assert slow.manifest.generation == (1 if quick is None else 2)
        for manifest, text in ((slow.manifest, b"slow"), (quick, b"quick")):
            if manifest is not None:
                assert contents(ArtifactStore(place.root_uri, machine), manifest) == {"file": text}

    def test_the_newest_is_current_and_each_kept_one_is_found_and_read(self, store, place) -> None:
        made = [publish(store, fingerprint=f"f{n}", files={"file": b"%d" % n}) for n in range(5)]
        assert [manifest.generation for manifest in made] == [1, 2, 3, 4, 5]
        assert store.require(KEY) == made[-1]
        assert store.numbers(KEY) == [3, 4, 5]
        assert [contents(store, manifest)["file"] for manifest in made[2:]] == [b"2", b"3", b"4"]
        assert store.find(KEY, "f3") == made[3]
        assert store.find(KEY, "f0") is None
        kept = {name for m in made[2:] for name in (manifest_name(m), f"{KEY}/{m.folder}/file")}
        assert set(place.names()) == kept, "what is not kept is gone, file by file"

    def test_keys_are_listed_and_deleted_with_all_they_had(self, store, place) -> None:
        for key in ("folder/b", "folder/a", "other/c"):
            publish(store, key)
        publish(store, "folder/a", "f2")
        assert store.list_keys("folder") == ["folder/a", "folder/b"]
        assert store.list_keys("none") == []
        store.delete("folder/a")
        assert store.list_keys("folder") == ["folder/b"]
        assert store.manifest("folder/a") is None
        assert not [name for name in place.names() if name.startswith("folder/a")]
        with pytest.raises(MissingArtifactError, match="folder/a"):
            store.require("folder/a")
        assert contents(store, store.require("folder/b")) == FILES
        store.delete("folder/a")

    @pytest.mark.parametrize("key", ["..", "a/../../b", "/abs", "a b", "", "a//b", ".hidden", "a\x00b"])
    def test_no_name_leaves_the_root(self, store, place, key) -> None:
        for action in (store.manifest, store.delete, store.list_keys, lambda key: publish(store, key)):
            with pytest.raises(StorageError, match="unsafe"):
                action(key)
        assert place.names() == []

    def test_a_link_is_no_content(self, store, place) -> None:
        with pytest.raises(StorageError, match="link"), store.publish(KEY, fingerprint="f") as publication:
            (publication.path / "passwd").symlink_to("/etc/passwd")
        assert place.names() == []
