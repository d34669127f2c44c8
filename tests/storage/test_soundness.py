"""What damage makes of an artifact: stale where content is concerned, and nothing where only a picture is."""

import os
from pathlib import Path

import pytest

from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage import ArtifactStore, Manifest

LONG_AGO = (1_000_000_000, 1_000_000_000)


def open_store(tmp_path: Path) -> ArtifactStore:
    """As another process would."""
    return ArtifactStore(str(tmp_path / "root"), tmp_path / "cache")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    store = open_store(tmp_path)
    with store.publish("model/a", fingerprint="f") as publication:
        (publication.path / "weights").write_bytes(b"weights")
        (publication.report_path / "curves.png").write_bytes(b"picture")
    assert publication.manifest is not None
    for name in publication.manifest.files:
        os.utime(store.uri(publication.manifest, name), LONG_AGO)
    assert store.find("model/a", "f"), "read once, and known by size and time from now on"
    return publication.manifest


def test_a_file_that_rotted_without_a_new_time_is_stale_once_it_was_read(tmp_path: Path, manifest: Manifest) -> None:
    path = Path(open_store(tmp_path).uri(manifest, "weights"))
    path.write_bytes(b"weighty")
    os.utime(path, LONG_AGO)
    assert open_store(tmp_path).find("model/a", "f"), "nothing that is looked at has changed"
    with pytest.raises(CorruptArtifactError, match=r"weights: sha256 .* materialise it again"):
        open_store(tmp_path).fetch(manifest)
    assert open_store(tmp_path).find("model/a", "f") is None, "so that materialising it again does that"


@pytest.mark.parametrize("content", [b"pixture", None])
def test_a_damaged_picture_is_in_nobody_s_way(tmp_path: Path, manifest: Manifest, content: bytes | None) -> None:
    path = Path(open_store(tmp_path).uri(manifest, "report/curves.png"))
    path.unlink() if content is None else path.write_bytes(content)
    store = open_store(tmp_path)
    assert store.find("model/a", "f") == manifest
    assert (store.fetch(manifest) / "weights").read_bytes() == b"weights"
    with pytest.raises(CorruptArtifactError, match=r"curves\.png"):
        store.fetch(manifest, ("report/curves.png",))
    assert store.find("model/a", "f") == manifest
