"""What a shard holds, known without reading it again: every shard that was looked at before is recognised.

A shard's content is named by the checksum of its framing (`index.framing_checksum`), wherever it lies. It is found
again by the shard's version: of a local file size and time of change, of an object in a bucket size and crc32c. The
versions only recognise; no digest depends on them. They lie in a cache of this machine and beside what is published.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from yt8m_assets.data.dataset.shards import Listed
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage import REPORT_FOLDER, ArtifactStore, atomic_write
from yt8m_assets.storage.files import is_settled

logger = logging.getLogger(__name__)
SHARD_ASSETS = ("pretraining_shards", "segment_shards", "test_shards")
SHARDS_FILE = "shards.json"
VERSIONS_FILE = f"{REPORT_FOLDER}/versions.json"
"""Version -> checksum of the shards in buckets that were read for a list; beside the content, not part of it."""
_CACHE_FILE = "identities.json"


class Identities:
    """URI and version -> checksum of the shards that this machine has seen."""

    def __init__(self, cache_path: Path) -> None:
        self._path = cache_path / _CACHE_FILE
        try:
            known = json.loads(self._path.read_text())
            self._known = {str(uri): [str(version), str(checksum)] for uri, (version, checksum) in known.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):  # it can be made again
            self._known = {}

    def get(self, uri: str, version: str) -> str | None:
        """The checksum of a shard whose version is the one that was seen."""
        entry = self._known.get(uri)
        return entry[1] if entry is not None and entry[0] == version else None

    def drop(self, uri: str) -> None:
        """Know a shard no more."""
        if self._known.pop(uri, None) is not None:
            self._write()

    def note(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Remember (URI, version, checksum) of shards that were read."""
        before = dict(self._known)
        for uri, version, checksum in found:
            if is_settled_version(version):
                self._known[uri] = [version, checksum]
        if self._known != before:
            self._write()

    def _write(self) -> None:
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(self._known, sort_keys=True))


def forget_shard(uri: str, cache_path: Path) -> None:
    """Recognise a shard no more: it is not what was seen before.

    Size and time of change said it was; a copy that keeps times, of another file of that size, is taken for the same.
    """
    Identities(cache_path).drop(uri)


def is_settled_version(version: str) -> bool:
    """Whether a version tells contents apart: a file that was changed just now may change again without another."""
    changed = version.partition("mtime_ns:")[2]
    return not changed or is_settled(int(changed))


def content_checksums(store: ArtifactStore, listing: Mapping[str, Listed]) -> dict[str, str]:
    """URI -> checksum of the content of listed shards.

    A local shard that nobody has seen is looked through, a page a record. One in a bucket is not fetched for it: its
    version stands for it, which is no content that was ever published.
    """
    identities = Identities(store.cache_path)
    versions = {uri: listed.version for uri, listed in listing.items()}
    found = {
        uri: checksum for uri, version in versions.items() if (checksum := identities.get(uri, version)) is not None
    }
    if len(found) < len(versions):
        published = published_versions(store, {v for uri, v in versions.items() if uri not in found})
        found |= {uri: published[v] for uri, v in versions.items() if uri not in found and v in published}
    unknown = [uri for uri in versions if uri not in found]
    looked_at = {uri: _look_through(uri) for uri in unknown if listing[uri].mtime_ns is not None}
    identities.note((uri, versions[uri], checksum) for uri, checksum in looked_at.items())
    return {uri: found.get(uri) or looked_at.get(uri) or version for uri, version in versions.items()}


def _look_through(uri: str) -> str:
    from yt8m_assets.data.dataset.index import framing_checksum

    return framing_checksum(uri)


def published_versions(store: ArtifactStore, wanted: set[str]) -> dict[str, str]:
    """Version with the store's crc32c -> checksum, of kept lists until all that are wanted are found: what other
    machines have read."""
    found: dict[str, str] = {}
    for asset in SHARD_ASSETS:
        for manifest in store.generations(asset):
            if wanted <= found.keys():
                return found
            if VERSIONS_FILE in manifest.files:
                try:
                    found |= json.loads((store.fetch(manifest, (VERSIONS_FILE,)) / VERSIONS_FILE).read_text())
                except CorruptArtifactError as error:
                    logger.warning("%s", error)
    return found


def versions_text(versions: Iterable[tuple[str, str]]) -> str:
    """The content of VERSIONS_FILE for (version, checksum) of shards; local ones are only known where they lie."""
    return json.dumps(dict(sorted(pair for pair in versions if "crc32c:" in pair[0])), indent=1)
