"""The indexes of shards that a pass has finished, kept in the store until their list is published.

A pass that was killed goes on from them, on this machine or another. Each lies under a name made of the shard's place,
its version as listed, and the sizes of its features; so what has changed since is not found. The folder goes as a
whole when a list of the asset is published; what another pass would still have found there is indexed again.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from yt8m_assets.data.dataset.identity import is_settled_version
from yt8m_assets.data.dataset.index import ShardIndex
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import Listed
from yt8m_assets.errors import DataError
from yt8m_assets.storage import sha256_text
from yt8m_assets.storage.backend import INDEXING_FOLDER, Backend

logger = logging.getLogger(__name__)
_NUM_PARALLEL = 16


@dataclass(frozen=True)
class IndexShelf:
    """Where the indexes of an asset's shards are kept while its list is not published."""

    backend: Backend
    """Where the artifacts lie."""
    asset: str
    """The list of shards that they are for."""

    @property
    def folder(self) -> str:
        """Its folder in the store."""
        return f"{INDEXING_FOLDER}/{self.asset}"

    def find(self, listing: Mapping[str, Listed], reading: Reading) -> dict[str, ShardIndex]:
        """URI -> index of the listed shards that are there, sound, and fit what is asked for."""
        there = set(self.backend.names(self.folder))
        names = {uri: name for uri, listed in listing.items() if (name := self._name(uri, listed, reading)) in there}
        with ThreadPoolExecutor(_NUM_PARALLEL) as pool:
            read = dict(zip(names, pool.map(self._read, names.values()), strict=True))
        return {
            uri: replace(index, described=listing[uri].described)
            for uri, index in read.items()
            if index is not None and not (index.quarantined and reading.on_corrupt == "raise")
        }

    def put(self, index: ShardIndex, listed: Listed, reading: Reading) -> None:
        """Keep an index, unless the shard was changed just now and may change again without looking different."""
        if is_settled_version(listed.version):
            self.backend.put_bytes(f"{self.folder}/{self._name(index.uri, listed, reading)}", index.to_bytes())

    def sweep(self) -> None:
        """Remove all of it."""
        self.backend.delete(self.folder)

    def discard(self, listing: Mapping[str, Listed], reading: Reading) -> None:
        """Remove what is there of listed shards: of a pass that ended while it swept. Others' stays."""
        there = set(self.backend.names(self.folder))
        names = there.intersection(self._name(uri, listed, reading) for uri, listed in listing.items())
        with ThreadPoolExecutor(_NUM_PARALLEL) as pool:
            list(pool.map(lambda name: self.backend.delete(f"{self.folder}/{name}"), names))

    def _name(self, uri: str, listed: Listed, reading: Reading) -> str:
        return f"{sha256_text(f'{uri}|{listed.version}|{tuple(reading.feature_sizes)}')[:32]}.index"

    def _read(self, name: str) -> ShardIndex | None:
        try:
            return ShardIndex.from_bytes(self.backend.read_bytes(f"{self.folder}/{name}"))
        except FileNotFoundError:
            return None  # swept by another pass
        except DataError as error:
            logger.warning("%s/%s: the index is %s; it is built again", self.folder, name, error)
            return None
