"""RELIABILITY rows about the artifact store: disk full, racing writers, names that try to leave the root."""

import multiprocessing
import queue
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yt8m_assets.errors import PartitionBusyError, StorageError
from yt8m_assets.storage import ArtifactStore, atomic_write, safe_join


def _publish_under_a_file_size_limit(root: str, connection: object) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        with ArtifactStore(root).publish("asset", fingerprint="new") as publication:
            (publication.path / "big.bin").write_bytes(b"x" * 100_000)
        connection.send("published")  # type: ignore[attr-defined]
    except StorageError as error:
        connection.send(str(error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("row", ["F04", "F05"])
def test_f04_f05_disk_full_leaves_the_old_artifact_and_nothing_half(tmp_path: Path, row: str) -> None:
    store = ArtifactStore(str(tmp_path))
    with store.publish("asset", fingerprint="old") as publication:
        (publication.path / "big.bin").write_bytes(b"o" * 1000)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_publish_under_a_file_size_limit, args=(store.root_uri, sender))
    process.start()
    assert receiver.poll(60)
    message = receiver.recv()
    process.join()
    assert "cannot write" in message
    assert "asset" in message
    manifest = store.require("asset")
    assert manifest.fingerprint == "old"
    assert (store.fetch(manifest) / "big.bin").read_bytes() == b"o" * 1000
    assert not list((tmp_path / "asset").glob(".tmp-*"))


def test_f05_atomic_write_to_a_full_device_names_the_path(tmp_path: Path) -> None:
    target = tmp_path / "submission.csv"
    full = pytest.raises(StorageError, match=r"submission\.csv.*no space left")
    with full, atomic_write(target), open("/dev/full", "wb", buffering=0) as device:
        device.write(b"x")
    assert not list(tmp_path.iterdir())


def _publish_rounds(root: str, name: str, rounds: int, barrier: object, results: object) -> None:
    store = ArtifactStore(root)
    for number in range(rounds):
        barrier.wait(60)  # type: ignore[attr-defined]
        try:
            with store.publish("cell", fingerprint=f"{name}-{number}") as publication:
                for part in range(3):
                    (publication.path / f"part{part}").write_text(f"{name}-{number}")
            results.put((name, number, "published"))  # type: ignore[attr-defined]
        except PartitionBusyError:
            results.put((name, number, "busy"))  # type: ignore[attr-defined]


def _read(store: ArtifactStore) -> set[str]:
    """The fingerprint that a reader finds, whose files say the same; nothing where it is told that all has passed."""
    manifest = store.manifest("cell")
    if manifest is None:
        return set()
    try:
        texts = {(store.fetch(manifest) / f"part{part}").read_text() for part in range(3)}
    except OSError:  # two generations passed between the manifest and the files
        return set()
    assert texts == {manifest.fingerprint}
    return texts


def test_f30_racing_writers_leave_one_whole_result_and_readers_never_see_a_mix(tmp_path: Path) -> None:
    rounds = 50
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = [(str(tmp_path), name, rounds, barrier, results) for name in ("left", "right")]
    writers = [context.Process(target=_publish_rounds, args=a) for a in arguments]
    for writer in writers:
        writer.start()
    store = ArtifactStore(str(tmp_path))
    last: set[str] = set()
    for number in range(rounds):
        barrier.wait(60)
        seen: set[str] = set()
        outcomes: list[tuple[str, int, str]] = []
        while len(outcomes) < len(writers):
            seen |= _read(store)
            with suppress(queue.Empty):
                outcomes.append(results.get(timeout=0.001))
        published = {f"{name}-{number}" for name, _, outcome in outcomes if outcome == "published"}
        assert seen <= last | published
        last = _read(store)
        assert last
        assert last <= published
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0


@given(st.text(min_size=1))
def test_f43_no_name_leaves_the_root(name: str) -> None:
    root = Path("/root-of-artifacts")
    try:
        joined = safe_join("asset", name)
    except StorageError:
        return
    assert (root / joined).resolve().is_relative_to(root / "asset")


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc/passwd", "a/../../b", "a\x00b", "a\\b", "\u2025/x", "a b", ".hidden", "", "a//b"]
)
def test_f43_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(StorageError, match="unsafe"):
        safe_join("asset", name)


def test_f43_a_link_inside_an_artifact_is_refused(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    with pytest.raises(StorageError, match="link"), store.publish("asset", fingerprint="f") as publication:
        (publication.path / "passwd").symlink_to("/etc/passwd")
    assert store.manifest("asset") is None


def test_f52_nothing_is_decided_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(str(tmp_path))
    for number, now in enumerate((2_000_000_000.0, 1.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with store.publish("asset", fingerprint=f"f{number}") as publication:
            (publication.path / "file").write_text(str(number))
    assert store.require("asset").fingerprint == "f1"
