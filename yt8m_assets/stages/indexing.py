"""The index of an asset's shards: made once, published with their list, and read by whoever needs the videos."""

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from yt8m_assets.data.dataset.identity import SHARDS_FILE, content_checksums
from yt8m_assets.data.dataset.index import ShardIndex
from yt8m_assets.data.dataset.packed import INDEX_FILE, PackedIndex, PackedShard, indexed_again
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import scan_shards
from yt8m_assets.data.dataset.shards import Listed, ShardInfo, ShardManifest
from yt8m_assets.data.dataset.shelf import IndexShelf
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.errors import CorruptArtifactError, DataError, ParentMismatchError
from yt8m_assets.progress import Progress
from yt8m_assets.storage import ArtifactStore, Manifest

logger = logging.getLogger(__name__)
VIDEO_IDS_FILE = "video_ids.parquet"


def index_shards(
    store: ArtifactStore,
    asset: str,
    listing: Mapping[str, Listed],
    reading: Reading,
    *,
    report: ReadReport,
    progress: Progress,
) -> list[ShardIndex]:
    """The index of listed shards of an asset, in their order.

    What a kept list holds of the same content is taken from there, what an unfinished pass left from its shelf; the
    rest is read.
    """
    known = _published(store, asset, listing, reading) if store.numbers(asset) else {}
    shelf = IndexShelf(store.backend, asset)
    return scan_shards(listing, reading, known=known, shelf=shelf, report=report, progress=progress)


def _published(
    store: ArtifactStore, asset: str, listing: Mapping[str, Listed], reading: Reading
) -> dict[str, ShardIndex]:
    """URI -> index of the listed shards whose content a kept list holds, indexed for the same features."""
    wanted: dict[str, list[str]] = {}
    for uri, checksum in content_checksums(store, listing).items():
        wanted.setdefault(checksum, []).append(uri)
    found: dict[str, ShardIndex] = {}
    for manifest in store.generations(asset):
        if not wanted:
            break
        if INDEX_FILE not in manifest.files:
            continue
        try:
            shards, index = _open(store, manifest)
        except (CorruptArtifactError, DataError) as error:
            logger.warning("%s", error)
            continue
        if index.feature_sizes != tuple(reading.feature_sizes):
            continue
        lost = _lost(shards)
        for shard in shards.shards:
            if shard.checksum not in wanted or (shard.name in lost and reading.on_corrupt == "raise"):
                continue
            try:
                packed = _packed(store, manifest, index, shard, lost, None)
                for uri in wanted[shard.checksum]:
                    listed = listing[uri]
                    if listed.size == shard.size:
                        found[uri] = indexed_again(packed, shard, uri, listed.described)
                del wanted[shard.checksum]
            except (CorruptArtifactError, DataError) as error:
                logger.warning("%s; its shards are indexed again", error)
    return found


def read_index(
    store: ArtifactStore, manifest: Manifest, shards: ShardManifest, held_out: bool | None = None
) -> tuple[PackedShard, ...]:
    """The shards of a published list with their index: all videos, or those on one side of the hold-out.

    shards: the list, with where its shards lie, or some of them. Of the index, the files of these shards are fetched.
    Raises ParentMismatchError where the artifact was published without an index, CorruptArtifactError where that is
    damaged.
    """
    if INDEX_FILE not in manifest.files:
        raise ParentMismatchError(f"{manifest.key} was published {WITHOUT_INDEX}")
    whole, index = _open(store, manifest)
    lost = _lost(whole)
    chosen = [shard for shard in shards.shards if _has(shard, held_out)]
    store.fetch(manifest, tuple({index.places[shard.name][0] for shard in chosen}))
    return tuple(_packed(store, manifest, index, shard, lost, held_out) for shard in chosen)


WITHOUT_INDEX = "without an index of this version; materialise it again, nothing that was made from it changes"


def read_video_ids(store: ArtifactStore, manifest: Manifest, held_out: bool) -> dict[str, np.ndarray]:
    """Shard name -> ids (S11 [n]) of its videos that are held out, or that are not, as published; no entry for none."""
    if INDEX_FILE not in manifest.files:
        return _listed_ids(store, manifest, held_out)
    shards = ShardManifest.read(store.fetch(manifest, (SHARDS_FILE,)) / SHARDS_FILE)
    named = ShardManifest(shards=tuple(shard for shard in shards.shards if shard.num_videos))
    chosen = [shard for shard in named.shards if _has(shard, held_out)]
    found = zip(chosen, read_index(store, manifest, named, held_out), strict=True)
    return {shard.name: packed.load().ids for shard, packed in found if len(packed)}


def _listed_ids(store: ArtifactStore, manifest: Manifest, held_out: bool) -> dict[str, np.ndarray]:
    """As `read_video_ids`, of a list from before there was an index: checks look at those, too."""
    import pyarrow.parquet

    folder = store.fetch(manifest, (SHARDS_FILE, VIDEO_IDS_FILE))
    names = [shard.name for shard in ShardManifest.read(folder / SHARDS_FILE).shards]
    table = pyarrow.parquet.read_table(folder / VIDEO_IDS_FILE)
    meant = table["held_out"].to_numpy() == held_out
    places, ids = table["shard"].to_numpy()[meant], np.array(table["video_id"].to_pylist(), "S11")[meant]
    return {name: found for place, name in enumerate(names) if len(found := ids[places == place])}


def _has(shard: ShardInfo, held_out: bool | None) -> bool:
    """Whether a shard belongs to a side of the hold-out: it has videos there, or holds none at all."""
    if held_out:
        return shard.num_held_out > 0 or shard.held_out
    return held_out is None or not shard.held_out


def _open(store: ArtifactStore, manifest: Manifest) -> tuple[ShardManifest, PackedIndex]:
    folder = store.fetch(manifest, (SHARDS_FILE, INDEX_FILE))
    shards = ShardManifest.read(folder / SHARDS_FILE)
    return shards, PackedIndex.read(folder / INDEX_FILE, shards)


def _lost(shards: ShardManifest) -> dict[str, list[Mapping[str, object]]]:
    """Name of each shard without some records -> the list's entries of them."""
    lost: dict[str, list[Mapping[str, object]]] = {}
    for entry in shards.quarantined:
        lost.setdefault(str(entry["shard"]), []).append(entry)
    return lost


def _packed(
    store: ArtifactStore,
    manifest: Manifest,
    index: PackedIndex,
    shard: ShardInfo,
    lost: Mapping[str, Iterable[Mapping[str, object]]],
    held_out: bool | None,
) -> PackedShard:
    folder = store.fetch(manifest, (index.places[shard.name][0],))
    return index.shard(folder, shard, lost.get(shard.name, ()), held_out)
