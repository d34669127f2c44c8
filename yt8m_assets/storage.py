"""Artifacts that are whole and verified, or not there at all.

An artifact is a key (`finetuned_model/bert_l2h12`) with numbered generations. A generation is a folder of files and a
manifest, `manifest-000001.json`, written last with a create-only precondition: until it lands the files are invisible,
and of two writers exactly one gets a number. Readers take the newest manifest and check every file against it.

    <root>/<key>/manifest-000001.json
    <root>/<key>/000001-<token>/<files>
"""

import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from yt8m_assets.errors import CorruptArtifactError, MissingArtifactError, PartitionBusyError, StorageError
from yt8m_assets.storage_backend import atomic_write, open_backend

__all__ = ["ArtifactStore", "Manifest", "Publication", "StageResult", "atomic_write", "canonical_json", "safe_join"]

SCHEMA = 1
REPORT_FOLDER = "report"
"""Files below this folder (plots, logs) are shown to people and do not enter the digest."""
_MANIFEST = re.compile(r"manifest-(\d{6})\.json")
_PART = re.compile(r"[A-Za-z0-9_.+=-]+")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Refuses NaN and unknown types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_text(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(*parts: str) -> str:
    """Join name parts to a relative key. Raises StorageError for anything that could leave the root.

    A part may hold letters, digits and `_ . + = -`, separated by `/`; `..`, absolute names and NUL are out.
    """
    names = [name for part in parts for name in part.split("/")]
    for name in names:
        if not _PART.fullmatch(name) or name.startswith("."):
            raise StorageError(f"unsafe artifact name {'/'.join(parts)!r}: {name!r} is not allowed")
    return "/".join(names)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is: its inputs, its files and what a person wants to know about it."""

    key: str
    """Name of the artifact below the store's root."""
    generation: int
    """Number of this publication, from 1."""
    folder: str
    """Folder of the files, beside the manifest."""
    fingerprint: str
    """Hash of everything that determined the content: config, code version, parents."""
    digest: str
    """Hash of the content: every file's name and sha256 (files below report/ excepted)."""
    files: dict[str, dict[str, Any]]
    """Relative name -> {"size": bytes, "sha256": hex}."""
    parents: dict[str, str] = field(default_factory=dict)
    """Key of each input artifact -> its digest."""
    config: dict[str, Any] = field(default_factory=dict)
    """The slice of the recipe that determined the content."""
    code_version: str = ""
    """Version of the code that made it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Numbers, texts and links for people."""
    created_unix_seconds: float = 0.0
    """When it was published; for people only, nothing is decided by it."""
    schema: int = SCHEMA
    """Version of this format."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry["size"] for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """JSON with a checksum of the rest, so that a damaged manifest is noticed."""
        content = asdict(self)
        checksum = sha256_text(canonical_json(content))
        return json.dumps({**content, "checksum": checksum}, indent=1, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Manifest":
        """Parse and check. Raises CorruptArtifactError naming the manifest."""
        try:
            values = json.loads(content)
            checksum = values.pop("checksum")
            schema = values["schema"]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptArtifactError(f"{name}: not a manifest ({error}); delete the artifact and redo it") from error
        if schema != SCHEMA:
            raise CorruptArtifactError(f"{name}: written as schema {schema}, this version reads {SCHEMA}; redo it")
        if checksum != sha256_text(canonical_json(values)):
            raise CorruptArtifactError(f"{name}: its checksum does not match; delete the artifact and redo it")
        for file in values["files"]:
            safe_join(file)
        safe_join(values["folder"])
        return cls(**values)


@dataclass(frozen=True)
class StageResult:
    """What a stage of the graph returns: the published manifest, and whether it had been there already."""

    manifest: Manifest
    reused: bool = False


@dataclass
class Publication:
    """An artifact being written: put files below `path`, fill `metadata`; leaving the block publishes it."""

    path: Path
    metadata: dict[str, Any]
    manifest: Manifest | None = None

    @property
    def report_path(self) -> Path:
        """Folder for what is shown to people and does not enter the digest."""
        path = self.path / REPORT_FOLDER
        path.mkdir(exist_ok=True)
        return path


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash of names and sha256 of the content files."""
    content = {n: e["sha256"] for n, e in files.items() if PurePosixPath(n).parts[0] != REPORT_FOLDER}
    return sha256_text(canonical_json(content))


class ArtifactStore:
    """Publishes and reads artifacts below a root: a local folder or gs://bucket/folder."""

    def __init__(self, root_uri: str, cache_path: Path | None = None) -> None:
        self.cache_path = cache_path or Path.home() / ".cache" / "yt8m"
        """Folder of this machine for what can be made again: indexes, copies of remote files."""
        self.backend = open_backend(root_uri, self.cache_path)
        self.root_uri = self.backend.root_uri
        self._verified: set[tuple[str, str]] = set()

    def uri(self, manifest: Manifest, name: str = "") -> str:
        """Full path or URI of a file of an artifact."""
        return "/".join(part for part in (self.root_uri, manifest.key, manifest.folder, name) if part)

    def _generations(self, key: str) -> list[int]:
        matches = (_MANIFEST.fullmatch(name) for name in self.backend.names(key))
        return sorted(int(match.group(1)) for match in matches if match)

    def manifest(self, key: str) -> Manifest | None:
        """The newest manifest of `key`, or None. Raises CorruptArtifactError when it is damaged."""
        key = safe_join(key)
        for _ in range(3):
            generations = self._generations(key)
            if not generations:
                return None
            name = f"{key}/manifest-{generations[-1]:06d}.json"
            try:
                content = self.backend.read_bytes(name)
            except FileNotFoundError:
                continue  # purged by a newer publication between listing and reading
            manifest = Manifest.from_bytes(content, f"{self.root_uri}/{name}")
            if manifest.key != key:
                raise CorruptArtifactError(f"{self.root_uri}/{name}: names itself {manifest.key!r}; redo it")
            return manifest
        raise StorageError(f"{self.root_uri}/{key}: its manifests change faster than they can be read")

    def require(self, key: str) -> Manifest:
        """The newest manifest of `key`. Raises MissingArtifactError where there is none."""
        manifest = self.manifest(key)
        if manifest is None:
            raise MissingArtifactError(
                f"{key} has not been materialised (looked in {self.root_uri}); materialise it first"
            )
        return manifest

    def fetch(self, manifest: Manifest, only: tuple[str, ...] | None = None) -> Path:
        """A local folder with the artifact's files, each checked against the manifest (once per process).

        `only` limits it to some files. Raises CorruptArtifactError naming the file that differs.
        """
        names = [name for name in manifest.files if only is None or name in only]
        folder = self.backend.local_folder(f"{manifest.key}/{manifest.folder}", names)
        for name in names:
            mark = (f"{manifest.key}/{manifest.folder}/{name}", manifest.files[name]["sha256"])
            if mark not in self._verified:
                check_file(folder / name, manifest.files[name])
                self._verified.add(mark)
        return folder

    def list_keys(self, folder: str) -> list[str]:
        """Keys of the artifacts directly below a folder, sorted."""
        folder = safe_join(folder)
        return [f"{folder}/{name}" for name in self.backend.names(folder) if self._generations(f"{folder}/{name}")]

    def delete(self, key: str) -> None:
        """Remove an artifact with all its generations; its manifests go first, so no half artifact is ever visible."""
        key = safe_join(key)
        for generation in self._generations(key):
            self.backend.delete(f"{key}/manifest-{generation:06d}.json")
        self.backend.delete(key)

    @contextmanager
    def publish(
        self,
        key: str,
        *,
        fingerprint: str,
        parents: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        code_version: str = "",
    ) -> Iterator[Publication]:
        """Write an artifact: files go below `publication.path`; leaving the block without an error publishes it whole.

        Raises PartitionBusyError when another run writes the same key, StorageError when the disk is full.
        """
        key = safe_join(key)
        with self.backend.lock(key):
            before = self._generations(key)
            generation = (before[-1] if before else 0) + 1
            publication = Publication(path=self.backend.staging(key), metadata={})
            folder = f"{generation:06d}-{secrets.token_hex(4)}"
            try:
                yield publication
                files = describe_files(publication.path)
                manifest = Manifest(
                    key=key,
                    generation=generation,
                    folder=folder,
                    fingerprint=fingerprint,
                    digest=content_digest(files),
                    files=files,
                    parents=dict(parents or {}),
                    config=json.loads(canonical_json(dict(config or {}))),
                    code_version=code_version,
                    metadata=json.loads(canonical_json(publication.metadata)),
                    created_unix_seconds=time.time(),
                )
                self.backend.put_folder(publication.path, f"{key}/{folder}")
                self._commit(key, generation, folder, manifest)
                publication.manifest = manifest
            except OSError as error:
                if isinstance(error, StorageError) or error.errno is None:
                    raise
                raise StorageError(f"{self.root_uri}/{key}: cannot write: {error.strerror or error}") from error
            finally:
                shutil.rmtree(publication.path, ignore_errors=True)
            self._purge(key, keep=(before[-1:] if before else []) + [generation])

    def _commit(self, key: str, generation: int, folder: str, manifest: Manifest) -> None:
        try:
            self.backend.create_exclusive(f"{key}/manifest-{generation:06d}.json", manifest.to_bytes())
        except FileExistsError as error:
            self.backend.delete(f"{key}/{folder}")
            raise PartitionBusyError(f"{key}: another run published it first; its result stands") from error

    def _purge(self, key: str, keep: list[int]) -> None:
        """Drop older generations; the previous one stays for readers that hold its manifest."""
        numbers = {f"{generation:06d}" for generation in keep}
        for name in self.backend.names(key):
            match = _MANIFEST.fullmatch(name) or re.fullmatch(r"(\d{6})-[0-9a-f]{8}", name)
            if match and match.group(1) not in numbers and int(match.group(1)) < max(keep):
                self.backend.delete(f"{key}/{name}")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative name -> size and sha256 of every file below a folder. Raises StorageError for a link or an odd name."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError(f"{name}: an artifact holds plain files only, this is a link")
        if path.is_file():
            files[safe_join(name)] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def check_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Compare a file with its manifest entry. Raises CorruptArtifactError naming path, expected and found."""
    if not path.is_file():
        raise CorruptArtifactError(f"{path}: is missing although its manifest lists it; redo the artifact")
    if path.stat().st_size != entry["size"]:
        raise CorruptArtifactError(f"{path}: {path.stat().st_size} bytes, its manifest says {entry['size']}; redo it")
    found = sha256_file(path)
    if found != entry["sha256"]:
        raise CorruptArtifactError(f"{path}: sha256 {found[:12]}, its manifest says {entry['sha256'][:12]}; redo it")
