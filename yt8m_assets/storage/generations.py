"""The kept generations of the artifacts below a root: found, read and removed; the store publishes them.

What keeps them (retention) and what tells whether their files are sound (soundness) know no more of the store.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage.backend import open_backend
from yt8m_assets.storage.cache import Cache
from yt8m_assets.storage.manifest import Manifest, safe_join, sha256_text

logger = logging.getLogger(__name__)

KEEP_GENERATIONS = 3
_MANIFEST = re.compile(r"manifest-(\d{6})\.json")


class Generations:
    """The generations below a root: a local folder or gs://bucket/folder.

    `keep_generations`: of each artifact the newest ones stay; see `retention` for what stays beyond that.
    """

    def __init__(
        self, root_uri: str, cache: Cache | Path | None = None, keep_generations: int = KEEP_GENERATIONS
    ) -> None:
        self.cache = cache if isinstance(cache, Cache) else Cache(cache) if cache else Cache()
        """This machine's, for what can be made again: indexes, copies of remote files. A path: of the usual size."""
        self.backend = open_backend(root_uri, self.cache.path)
        self.root_uri = self.backend.root_uri
        self.keep_generations = max(keep_generations, 2)
        """At least two: a reader may hold the manifest of the generation before."""
        self.parents_seen: dict[tuple[str, int], dict[str, str]] = {}
        """Key and generation -> parents, of the manifests that retention has read."""

    @property
    def cache_path(self) -> Path:
        """Folder of the cache."""
        return self.cache.path

    def uri(self, manifest: Manifest, name: str = "") -> str:
        """Full path or URI of a file of an artifact."""
        return "/".join(part for part in (self.root_uri, manifest.key, manifest.folder, name) if part)

    def numbers(self, key: str) -> list[int]:
        """Numbers of the kept generations of `key`, rising."""
        matches = (_MANIFEST.fullmatch(name) for name in self.backend.names(key))
        return sorted(int(match.group(1)) for match in matches if match)

    def read_manifest(self, key: str, generation: int) -> Manifest:
        """One manifest. Raises FileNotFoundError when it is gone, CorruptArtifactError when it is damaged."""
        name = f"{key}/manifest-{generation:06d}.json"
        manifest = Manifest.from_bytes(self.backend.read_bytes(name), f"{self.root_uri}/{name}")
        if manifest.key != key:
            raise CorruptArtifactError(f"{self.root_uri}/{name}: names itself {manifest.key!r}; redo it")
        return manifest

    def generations(self, key: str) -> Iterator[Manifest]:
        """The manifests of the kept generations, newest first; damaged ones are passed over and logged."""
        key = safe_join(key)
        for number in reversed(self.numbers(key)):
            try:
                yield self.read_manifest(key, number)
            except FileNotFoundError:
                continue  # purged in the meantime
            except CorruptArtifactError as error:
                logger.warning("%s", error)

    def seal(self, manifest: Manifest) -> Path:
        """Where this machine notes which files of an artifact it has found sound."""
        name = sha256_text(f"{self.root_uri}/{manifest.key}/{manifest.folder}")[:24]
        return self.cache_path / "sound" / f"{name}.json"

    def list_keys(self, folder: str) -> list[str]:
        """Keys of the artifacts directly below a folder, sorted."""
        folder = safe_join(folder)
        return [f"{folder}/{name}" for name in self.backend.names(folder) if self.numbers(f"{folder}/{name}")]

    def delete(self, key: str) -> None:
        """Remove an artifact with all its generations; its manifests go first, so no half artifact is ever visible."""
        key = safe_join(key)
        for generation in self.numbers(key):
            self.backend.delete(f"{key}/manifest-{generation:06d}.json")
        self.backend.delete(key)

    def drop(self, key: str, generation: int) -> None:
        """Remove one generation, manifest first; its folder goes with the next publication where it cannot be read."""
        key = safe_join(key)
        try:
            manifest: Manifest | None = self.read_manifest(key, generation)
        except (FileNotFoundError, CorruptArtifactError):
            manifest = None
        self.backend.delete(f"{key}/manifest-{generation:06d}.json")
        if manifest is not None:
            self.backend.delete(f"{key}/{manifest.folder}")
            self.seal(manifest).unlink(missing_ok=True)
