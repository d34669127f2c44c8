import contextlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from unittest import mock

import pytest

from yt8m_assets.errors import (
    CorruptArtifactError,
    LaterVersionError,
    MissingArtifactError,
    PartitionBusyError,
    StorageError,
)
from yt8m_assets.storage import KEEP_GENERATIONS, ArtifactStore, Manifest, atomic_write, canonical_json, safe_join


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


def kept(store: ArtifactStore, key: str) -> list[int]:
    return store.numbers(key)


def test_the_previous_generation_stays_for_readers_and_older_ones_go(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "root"), tmp_path / "cache", keep_generations=2)
    manifests = [publish(store, text=f"text {number}") for number in range(4)]
    assert (store.fetch(manifests[2]) / "sub/file.txt").read_text() == "text 2"
    names = sorted(path.name for path in (Path(store.root_uri) / "asset/model").iterdir())
    assert [name for name in names if name.startswith("manifest")] == ["manifest-000003.json", "manifest-000004.json"]
    assert not [name for name in names if name.startswith(("000001", "000002"))]


def test_an_artifact_is_found_by_its_fingerprint_among_the_kept_generations(store: ArtifactStore) -> None:
    """Two recipes in one store do not replace each other's results, and switching back costs nothing."""
    first, second = publish(store, text="a", fingerprint="A"), publish(store, text="b", fingerprint="B")
    assert store.find("asset/model", "A") == first
    assert store.find("asset/model", "B") == second
    assert store.find("asset/model", "C") is None
    again = publish(store, text="a once more", fingerprint="A")
    assert store.find("asset/model", "A") == again, "of two attempts the newer one counts"
    path = Path(store.root_uri) / f"asset/model/manifest-{again.generation:06d}.json"
    path.write_bytes(path.read_bytes()[:40])
    assert store.find("asset/model", "A") == first, "a damaged manifest is as good as none"


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_how_many_generations_are_kept_is_a_setting(tmp_path: Path, keep: int) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache", keep_generations=keep)
    for number in range(7):
        publish(store, text=f"text {number}", fingerprint=str(number))
    assert kept(store, "asset/model") == list(range(8 - keep, 8))
    folders = [path for path in (tmp_path / "asset/model").iterdir() if path.is_dir()]
    assert len(folders) == keep


def put(
    store: ArtifactStore, key: str, text: str, parents: dict[str, str] | None = None, **metadata: float
) -> Manifest:
    with store.publish(key, fingerprint=text, parents=parents) as publication:
        (publication.path / "file").write_text(text)
        publication.metadata.update(metadata)
    assert publication.manifest is not None
    return publication.manifest


def test_submissions_and_all_they_were_made_from_are_never_dropped(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache", keep_generations=2)
    for number in range(5):
        model = put(store, "pretrained_model/one", f"model {number}")
        weights = put(store, "ensemble_weights", f"weights {number}", {model.key: model.digest})
        if number < 2:
            put(store, "submission", f"list {number}", {weights.key: weights.digest})
    for number in range(3):
        put(store, "submission", f"later list {number}", {weights.key: weights.digest})
    assert kept(store, "submission") == [1, 2, 3, 4, 5]
    assert kept(store, "ensemble_weights") == [1, 2, 4, 5], "the third was used by no submission"
    assert kept(store, "pretrained_model/one") == [1, 2, 3, 4, 5], "parents of weights that were there at the time"
    put(store, "pretrained_model/one", "model 5")
    assert kept(store, "pretrained_model/one") == [1, 2, 4, 5, 6], "the third's weights are gone"


def test_the_best_model_on_each_set_of_ratings_is_never_dropped(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path), tmp_path / "cache", keep_generations=2)
    for number, (ratings, quality) in enumerate(
        [("x", 0.7), ("x", 0.9), ("y", 0.1), ("x", 0.8), ("x", 0.2), ("x", 0.3)]
    ):
        put(store, "finetuned_model/one", f"model {number}", {"holdout_ratings": ratings}, map=quality)
    assert kept(store, "finetuned_model/one") == [2, 3, 5, 6]


def test_of_checkpoints_only_the_generation_before_stays(store: ArtifactStore) -> None:
    for number in range(4):
        with store.publish("checkpoints/model/best", fingerprint="f", scratch=True) as publication:
            (publication.path / "file").write_text(str(number))
    assert kept(store, "checkpoints/model/best") == [3, 4]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), FileNotFoundError(2, "no such", "input.csv")])
def test_what_a_publish_block_raises_keeps_its_kind(store: ArtifactStore, error: OSError) -> None:
    """A reset connection may pass when it is tried again; as "cannot write" nobody would try."""
    with pytest.raises(type(error)) as caught, store.publish("asset/model", fingerprint="f"):
        raise error
    assert caught.value is error
    with pytest.raises(type(error)) as caught, atomic_write(Path(store.root_uri) / "file"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("root", ["local", "memory://bucket/overtaken"])
def test_a_slow_writer_overtaken_by_three_is_told_what_is_current(tmp_path: Path, root: str) -> None:
    root = str(tmp_path / "root") if root == "local" else root
    slow = ArtifactStore(root, tmp_path / "cache", keep_generations=2)
    slow.delete("asset/model")
    others = ArtifactStore(root, tmp_path / "other cache", keep_generations=2)
    no_lock = contextlib.nullcontext()  # as over a network file system that has none
    publish(slow, text="start", fingerprint="start")
    with mock.patch.object(type(slow.backend), "lock", return_value=no_lock):
        with slow.publish("asset/model", fingerprint="slow") as publication:
            (publication.path / "file.txt").write_text("slow")
            staged = publication.path.rename(tmp_path / "staged")  # out of the reach of the others' sweeping
            for number in range(3):
                publish(others, text=f"other {number}", fingerprint=f"other {number}")
            staged.rename(publication.path)
        manifest = publication.manifest
        assert manifest is not None
        assert manifest.generation == 5
        assert slow.require("asset/model") == manifest == slow.find("asset/model", "slow")
        assert (slow.fetch(manifest) / "file.txt").read_text() == "slow"
        with (
            pytest.raises(PartitionBusyError, match=r"its result stands: generation 7"),
            slow.publish("asset/model", fingerprint="same") as publication,
        ):
            (publication.path / "file.txt").write_text("slow")
            staged = publication.path.rename(tmp_path / "staged")
            publish(others, text="x", fingerprint="x")
            publish(others, text="theirs", fingerprint="same")
            staged.rename(publication.path)
    found = slow.find("asset/model", "same")
    assert found is not None
    assert (slow.fetch(found) / "sub/file.txt").read_text() == "theirs"


def test_a_folder_whose_writer_died_before_its_manifest_goes_with_the_next_publication(store: ArtifactStore) -> None:
    publish(store)
    orphan = Path(store.root_uri) / "asset/model/000002-0123abcd"
    orphan.mkdir()
    manifest = publish(store, text="next")
    assert not orphan.exists()
    assert (store.fetch(manifest) / "sub/file.txt").read_text() == "next"


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


def test_a_submission_made_again_as_it_was_is_kept_once(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    for text in "aaabbbb":
        with store.publish("submission", fingerprint=text) as publication:
            (publication.path / "submission.csv").write_text(text)
    assert [manifest.fingerprint for manifest in store.generations("submission")] == ["b", "b", "b", "a"], (
        "the newest three, and every other"
    )


def test_what_a_cache_knows_of_a_generation_goes_with_it(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    for number in range(8):
        published = publish(store, text=str(number), fingerprint=str(number))
        for path in (tmp_path / "store" / published.key).rglob("*"):
            os.utime(path, (1e9, 1e9))  # what changed just now may change again without a trace, and is not noted
        assert store.find(published.key, str(number)) == published
    assert len(list((tmp_path / "cache/sound").iterdir())) == KEEP_GENERATIONS


def test_a_manifest_of_another_schema_is_refused_by_number(store: ArtifactStore) -> None:
    manifest = publish(store)
    for schema, error, cure in ((99, LaterVersionError, "a later version"), (0, CorruptArtifactError, "materialise")):
        values = json.loads(manifest.to_bytes()) | {"schema": schema}
        with pytest.raises(error, match=f"m: written as schema {schema}, this version reads 1; {cure}"):
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


def test_a_bucket_keeps_no_copies_of_what_is_gone_and_no_leftovers_of_the_dead(tmp_path: Path) -> None:
    store = ArtifactStore("memory://bucket/swept", tmp_path / "cache", keep_generations=2)
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
