import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from yt8m_assets.errors import CorruptArtifactError, MissingArtifactError, PartitionBusyError, StorageError
from yt8m_assets.storage import ArtifactStore, Manifest, atomic_write, canonical_json, safe_join


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "root"), tmp_path / "cache")


def publish(store: ArtifactStore, key: str = "asset/model", text: str = "content", fingerprint: str = "f1") -> Manifest:
    with store.publish(key, fingerprint=fingerprint, parents={"up": "d"}, config={"a": 1}) as publication:
        (publication.path / "sub").mkdir()
        (publication.path / "sub" / "file.txt").write_text(text)
        (publication.report_path / "plot.txt").write_text("shown to people")
        publication.metadata["map"] = 0.5
    assert publication.manifest is not None
    return publication.manifest


def test_a_published_artifact_reads_back_whole(store: ArtifactStore) -> None:
    manifest = publish(store)
    assert store.manifest("asset/model") == manifest
    assert (manifest.generation, manifest.parents, manifest.metadata["map"]) == (1, {"up": "d"}, 0.5)
    assert (store.fetch(manifest) / "sub/file.txt").read_text() == "content"
    assert Path(store.uri(manifest, "sub/file.txt")).read_text() == "content"
    assert manifest.size == len("content") + len("shown to people")


def test_the_digest_depends_on_content_and_not_on_reports(store: ArtifactStore) -> None:
    first = publish(store)
    again = publish(store)
    other = publish(store, text="other")
    assert again.generation == 2
    assert first.digest == again.digest
    assert other.digest != first.digest
    with store.publish("asset/model", fingerprint="f1") as publication:
        (publication.path / "sub").mkdir()
        (publication.path / "sub" / "file.txt").write_text("content")
        (publication.report_path / "plot.txt").write_text("another picture")
    assert publication.manifest is not None
    assert publication.manifest.digest == first.digest


def test_an_error_while_writing_publishes_nothing(store: ArtifactStore) -> None:
    publish(store, text="old")
    with pytest.raises(ZeroDivisionError), store.publish("asset/model", fingerprint="f2") as publication:
        (publication.path / "file.txt").write_text("half")
        raise ZeroDivisionError
    manifest = store.require("asset/model")
    assert (manifest.generation, manifest.fingerprint) == (1, "f1")
    left = [path.name for path in (Path(store.root_uri) / "asset/model").iterdir()]
    assert not [name for name in left if name.startswith(".tmp-")]


def test_a_missing_artifact_is_named(store: ArtifactStore) -> None:
    assert store.manifest("asset/none") is None
    with pytest.raises(MissingArtifactError, match="asset/none"):
        store.require("asset/none")


def test_the_previous_generation_stays_for_readers_and_older_ones_go(store: ArtifactStore) -> None:
    manifests = [publish(store, text=f"text {number}") for number in range(4)]
    assert (store.fetch(manifests[2]) / "sub/file.txt").read_text() == "text 2"
    names = sorted(path.name for path in (Path(store.root_uri) / "asset/model").iterdir())
    assert [name for name in names if name.startswith("manifest")] == ["manifest-000003.json", "manifest-000004.json"]
    assert not [name for name in names if name.startswith(("000001", "000002"))]


@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "delete"])
def test_damaged_files_are_refused_by_name(store: ArtifactStore, damage: str) -> None:
    manifest = publish(store)
    path = Path(store.uri(manifest, "sub/file.txt"))
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        changed = {"flip": bytes([content[0] ^ 1]) + content[1:], "truncate": content[:-1], "append": content + b"x"}
        path.write_bytes(changed[damage])
    with pytest.raises(CorruptArtifactError, match=r"file\.txt"):
        ArtifactStore(store.root_uri).fetch(manifest)


def test_a_damaged_manifest_is_refused_and_not_skipped(store: ArtifactStore) -> None:
    publish(store, text="old")
    manifest = publish(store, text="new")
    path = Path(store.root_uri) / f"asset/model/manifest-{manifest.generation:06d}.json"
    values = json.loads(path.read_bytes())
    values["fingerprint"] = "forged"
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifactError, match="checksum"):
        store.manifest("asset/model")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorruptArtifactError, match="not a manifest"):
        store.manifest("asset/model")


def test_a_manifest_of_another_schema_is_refused_by_number(store: ArtifactStore) -> None:
    manifest = publish(store)
    values = json.loads(manifest.to_bytes()) | {"schema": 99}
    with pytest.raises(CorruptArtifactError, match="schema 99"):
        Manifest.from_bytes(json.dumps(values).encode(), "m")


def _hold(root: str, started: object, release: object) -> None:
    store = ArtifactStore(root)
    with store.publish("asset/model", fingerprint="holder") as publication:
        (publication.path / "file.txt").write_text("holder")
        started.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_second_writer_is_told_to_wait_and_a_dead_writer_holds_nothing(store: ArtifactStore) -> None:
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(store.root_uri, started, release))
    process.start()
    assert started.wait(30)
    with pytest.raises(PartitionBusyError, match="asset/model"):
        publish(store)
    process.kill()
    process.join()
    publish(store)
    assert store.require("asset/model").fingerprint == "f1"


def test_keys_below_a_folder_are_listed_and_deleted(store: ArtifactStore) -> None:
    for step in (100, 20):
        publish(store, key=f"checkpoints/model/step-{step:06d}")
    keys = ["checkpoints/model/step-000020", "checkpoints/model/step-000100"]
    assert store.list_keys("checkpoints/model") == keys
    store.delete(keys[0])
    assert store.list_keys("checkpoints/model") == keys[1:]
    assert store.list_keys("nothing/here") == []


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with atomic_write(target) as temporary:
        temporary.write_text("one")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert target.read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]


def test_a_root_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        publish(ArtifactStore(str(blocked / "root")))
    with pytest.raises(StorageError, match="cannot write"), atomic_write(blocked / "file.txt") as temporary:
        temporary.write_text("x")


def test_canonical_json_refuses_what_is_not_exact() -> None:
    assert canonical_json({"b": 1, "a": [1.5]}) == '{"a":[1.5],"b":1}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})


def test_safe_join_joins() -> None:
    assert safe_join("oof_predictions", "bert_l2h12/shift+1") == "oof_predictions/bert_l2h12/shift+1"


def test_the_same_store_over_a_remote_filesystem(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/root", tmp_path / "cache")
    publish(store, text="one")
    manifest = publish(store, text="two")
    assert (store.fetch(manifest) / "sub/file.txt").read_text() == "two"
    assert store.list_keys("asset") == ["asset/model"]
    cached = tmp_path / "cache/artifacts/asset/model" / manifest.folder / "sub/file.txt"
    cached.write_text("twx")
    with pytest.raises(CorruptArtifactError, match=r"file\.txt"):
        ArtifactStore("memory://bucket/root", tmp_path / "cache").fetch(manifest)
    store.delete("asset/model")
    assert store.manifest("asset/model") is None


def test_a_bucket_keeps_no_copies_of_what_is_gone_and_no_leftovers_of_the_dead(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/swept", tmp_path / "cache")
    folders = [store.fetch(publish(store, text=text)) for text in ("one", "two", "three")]
    assert [folder.is_dir() for folder in folders] == [False, True, True], "the generation before stays for its readers"
    store.delete("asset/model")
    assert not any(folder.is_dir() for folder in folders)

    process = multiprocessing.get_context("spawn").Process(target=die_while_publishing, args=(tmp_path / "cache",))
    process.start()
    process.join()
    (leftover,) = (tmp_path / "cache" / "staging").iterdir()
    assert (leftover / "large").is_file()
    foreign = leftover.with_name("01234567-1-1-abcd")
    foreign.mkdir()
    with store.publish("asset/other", fingerprint="f") as held:
        publish(store)
        assert held.path.is_dir(), "that of a living process stays"
    assert [path.name for path in leftover.parent.iterdir()] == [foreign.name], "another host's is not judged from here"


def die_while_publishing(cache_path: Path) -> None:
    """Run in a child process: killed between two files."""
    with ArtifactStore("memory://bucket/swept", cache_path).publish("asset/model", fingerprint="f") as publication:
        (publication.path / "large").write_bytes(bytes(100))
        os.kill(os.getpid(), signal.SIGKILL)
