"""Artifacts that are whole and verified, or not there at all.

An artifact is a key (`finetuned_model/bert_l2h12`) with numbered generations. A generation is a folder of files and a
manifest, `manifest-000001.json`, written last with a create-only precondition: until it lands the files are invisible,
and of two writers exactly one gets a number. Readers look among the kept generations for the fingerprint they want, so
several recipes share a store, and check every file against its manifest. How many are kept: `retention`.

    <root>/<key>/manifest-000001.json
    <root>/<key>/000001-<token>/<files>
"""

import copy
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yt8m_assets.errors import CorruptArtifactError, MissingArtifactError, PartitionBusyError, StorageError
from yt8m_assets.storage.backend import RemoteBackend
from yt8m_assets.storage.cache import Cache
from yt8m_assets.storage.files import is_write_error
from yt8m_assets.storage.generations import KEEP_GENERATIONS, Generations
from yt8m_assets.storage.glance import GlancedBackend
from yt8m_assets.storage.manifest import (
    REPORT_FOLDER,
    Manifest,
    canonical_json,
    check_file,
    content_digest,
    describe_files,
    safe_join,
)
from yt8m_assets.storage.retention import purge
from yt8m_assets.storage.soundness import content_files, damage, forget_sound

logger = logging.getLogger(__name__)
"""Generations of an artifact that are kept when nothing else is said."""


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
    def result(self) -> StageResult:
        """What the stage that wrote it returns, once the block is left."""
        assert self.manifest is not None, "leaving the block publishes"
        return StageResult(self.manifest)

    @property
    def report_path(self) -> Path:
        """Folder for what is shown to people and does not enter the digest."""
        path = self.path / REPORT_FOLDER
        path.mkdir(exist_ok=True)
        return path


class ArtifactStore(Generations):
    """Publishes and reads artifacts below a root: a local folder or gs://bucket/folder.

    `keep_generations`: of each artifact the newest ones stay; see `retention` for what stays beyond that.
    """

    def __init__(
        self, root_uri: str, cache: Cache | Path | None = None, keep_generations: int = KEEP_GENERATIONS
    ) -> None:
        super().__init__(root_uri, cache, keep_generations)
        self.remade: frozenset[str] = frozenset()
        """Keys that are to be made again though they are there."""
        self.takes_outdated = False
        """Whether parents that are not up to date may be built upon."""
        self._verified: set[tuple[str, str]] = set()

    def manifest(self, key: str) -> Manifest | None:
        """The newest manifest of `key`, or None. Raises CorruptArtifactError when it is damaged.

        Whether it is what a recipe wants is another question: see `find` and `lineage`.
        """
        key = safe_join(key)
        for _ in range(3):
            numbers = self.numbers(key)
            if not numbers:
                return None
            try:
                return self.read_manifest(key, numbers[-1])
            except FileNotFoundError:
                continue  # purged by a newer publication between listing and reading
        raise StorageError(f"{self.root_uri}/{key}: its manifests change faster than they can be read")

    def find(self, key: str, fingerprint: str, holding: Iterable[str] = ()) -> Manifest | None:
        """The newest sound generation of `key` that was made from exactly this and holds those files, or None."""
        if key in self.remade:
            return None
        wanted = set(holding)
        made_of_it = (
            found
            for found in self.generations(key)
            if found.fingerprint == fingerprint and wanted <= found.files.keys()
        )
        return next((found for found in made_of_it if not damage(self, found)), None)

    def making_again(self, keys: Iterable[str]) -> "ArtifactStore":
        """The same store for a new attempt at some artifacts: `find` does not see them."""
        store = copy.copy(self)
        store.remade = frozenset(keys)
        return store

    def at_a_glance(self) -> "ArtifactStore":
        """The same store for who asks much of it at one time: of a bucket, each asset's folder is listed once."""
        if not isinstance(self.backend, RemoteBackend):
            return self
        store = copy.copy(self)
        store.backend = GlancedBackend(self.backend)
        return store

    def taking_outdated(self) -> "ArtifactStore":
        """The same store for who wants to build on what is there: lineage takes parents that are not up to date."""
        store = copy.copy(self)
        store.takes_outdated = True
        return store

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

        The files below report/ are left out, for nothing is made of them: `only` names those that are wanted. A damaged
        copy of what lies in a bucket is fetched once more. Raises CorruptArtifactError naming the file that differs;
        from then on the artifact is not current.
        """
        names = content_files(manifest) if only is None else [name for name in manifest.files if name in only]
        location = f"{manifest.key}/{manifest.folder}"
        try:
            folder = self.backend.local_folder(location, names)
        except FileNotFoundError as error:
            raise CorruptArtifactError(f"{error}, although its manifest lists it; redo the artifact") from error
        for name in names:
            mark = (f"{location}/{name}", manifest.files[name]["sha256"])
            if mark not in self._verified:
                self._check(folder / name, location, name, manifest)
                self._verified.add(mark)
        return folder

    def _check(self, path: Path, location: str, name: str, manifest: Manifest) -> None:
        try:
            check_file(path, manifest.files[name])
        except CorruptArtifactError as error:
            if not self.backend.drop_copy(f"{location}/{name}"):
                forget_sound(self, manifest)
                raise
            logger.warning("%s; fetching it again", error)
            self.backend.local_folder(location, [name])
            try:
                check_file(path, manifest.files[name])
            except CorruptArtifactError as lasting:
                raise CorruptArtifactError(f"{self.uri(manifest, name)}: twice, its copy {lasting}") from lasting

    @contextmanager
    def publish(
        self,
        key: str,
        *,
        fingerprint: str,
        parents: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        code_version: str = "",
        scratch: bool = False,
    ) -> Iterator[Publication]:
        """Write an artifact: files go below `publication.path`; leaving the block without an error publishes it whole.

        `scratch`: nothing is ever made from it (a checkpoint), so only the generation before stays. Raises
        PartitionBusyError when another run writes the same key or has published the same in the meantime, StorageError
        when the artifact cannot be written; what the block itself raises passes as it is.
        """
        key = safe_join(key)
        with self.backend.lock(key):
            before = self.numbers(key)
            publication = Publication(path=self.backend.staging(key), metadata={})
            folder = f"{(before[-1] if before else 0) + 1:06d}-{secrets.token_hex(4)}"
            try:
                yield publication
                files = describe_files(publication.path)
                values = {
                    "key": key,
                    "folder": folder,
                    "fingerprint": fingerprint,
                    "digest": content_digest(files),
                    "files": files,
                    "parents": dict(parents or {}),
                    "config": json.loads(canonical_json(dict(config or {}))),
                    "code_version": code_version,
                    "metadata": json.loads(canonical_json(publication.metadata)),
                    "created_unix_seconds": time.time(),
                }
                self.backend.put_folder(publication.path, f"{key}/{folder}")
                publication.manifest = self._commit(values, before)
            except OSError as error:
                if isinstance(error, StorageError) or not is_write_error(error, publication.path):
                    raise
                raise StorageError(f"{self.root_uri}/{key}: cannot write: {error.strerror or error}") from error
            finally:
                shutil.rmtree(publication.path, ignore_errors=True)
            purge(self, key, scratch)

    def _commit(self, values: dict[str, Any], before: list[int]) -> Manifest:
        """Create the manifest under the next free number: others may have published since this writer began."""
        key = values["key"]
        while True:
            numbers = self.numbers(key)
            for number in (number for number in numbers if number > max(before, default=0)):
                self._refuse_twin(values, number)
            manifest = Manifest(generation=max([*before, *numbers], default=0) + 1, **values)
            try:
                self.backend.create_exclusive(f"{key}/manifest-{manifest.generation:06d}.json", manifest.to_bytes())
                return manifest
            except FileExistsError:
                continue

    def _refuse_twin(self, values: dict[str, Any], number: int) -> None:
        """Give way to another run that published the same in the meantime."""
        key, fingerprint = values["key"], values["fingerprint"]
        try:
            other = self.read_manifest(key, number)
        except (FileNotFoundError, CorruptArtifactError):
            return
        if other.fingerprint == fingerprint:
            self.backend.delete(f"{key}/{values['folder']}")
            raise PartitionBusyError(
                f"{key}: another run published it first; its result stands: generation {number}, {other.digest[:12]}"
            )
