"""Whether an artifact's files are what its manifest says, without reading again what was read before.

What is damaged is not current, so that materialising makes it again. A file of this machine whose sha256 was right is
known by size and time of change from then on; objects of a bucket, which nothing changes in place, by name and size.
"""

import json
from pathlib import Path, PurePosixPath

from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage.backend import RemoteBackend
from yt8m_assets.storage.files import atomic_write, is_settled
from yt8m_assets.storage.generations import Generations
from yt8m_assets.storage.manifest import REPORT_FOLDER, Manifest, check_file, is_content


def content_files(manifest: Manifest) -> list[str]:
    """The files that things are made from."""
    return [name for name in manifest.files if is_content(name)]


def counted_files(manifest: Manifest) -> list[str]:
    """The files that must be sound: a damaged picture is no reason to train again."""
    return [name for name in manifest.files if PurePosixPath(name).parts[0] != REPORT_FOLDER]


def damage(store: Generations, manifest: Manifest) -> list[str]:
    """What is wrong with the files that must be sound, in words; empty where they are."""
    if isinstance(store.backend, RemoteBackend):
        sizes = store.backend.sizes(f"{manifest.key}/{manifest.folder}")
        wanted = {name: manifest.files[name]["size"] for name in counted_files(manifest)}
        return [f"{store.uri(manifest, n)}: {_found(sizes.get(n))}" for n, s in wanted.items() if sizes.get(n) != s]
    seal = store.seal(manifest)
    try:
        known = {name: [size, changed] for name, (size, changed) in json.loads(seal.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):  # it can be made again
        known = {}
    seen = {}
    for name in counted_files(manifest):
        try:
            seen[name] = _look(Path(store.uri(manifest, name)), manifest, name, known.get(name))
        except CorruptArtifactError as error:
            return [str(error)]
    settled = {name: list(mark) for name, mark in seen.items() if is_settled(mark[1])}
    if settled != known:
        with atomic_write(seal) as temporary:
            temporary.write_text(json.dumps(settled))
    return []


def forget_sound(store: Generations, manifest: Manifest) -> None:
    """Read an artifact's files again before it counts as sound: one was found damaged, whatever its time says."""
    store.seal(manifest).unlink(missing_ok=True)


def _found(size: int | None) -> str:
    return "is missing" if size is None else f"has {size} bytes, not those of its manifest"


def _look(path: Path, manifest: Manifest, name: str, known: list[int] | None) -> tuple[int, int]:
    """Size and time of change of a sound file. Raises CorruptArtifactError."""
    try:
        found = path.stat()
    except OSError:
        check_file(path, manifest.files[name])
        raise
    mark = (found.st_size, found.st_mtime_ns)
    if known is None or tuple(known) != mark:
        check_file(path, manifest.files[name])
    return mark
