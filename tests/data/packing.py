"""Shards with a published index, without an artifact around it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from yt8m_assets.data.dataset.packed import INDEX_FILE, PackedIndex, PackedShard, write_index
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import describe_shard, scan_shards
from yt8m_assets.data.dataset.shards import ShardManifest


def pack_shards(
    folder: Path,
    uris: Sequence[str],
    reading: Reading,
    held_out_ids: Sequence[str] = (),
    held_out: bool | None = None,
) -> tuple[PackedShard, ...]:
    """Index shards and publish that below a folder; the shards as they are known by it, all or one side of them."""
    indices = scan_shards(uris, reading)
    names = np.array(sorted(held_out_ids), "S11")
    kept_out = {index.uri: np.isin(index.ids, names) for index in indices}
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, indices, kept_out)
    described = [describe_shard(index, index.uri, held_out_ids=names) for index in indices]
    index = PackedIndex.read(folder / INDEX_FILE, ShardManifest(shards=tuple(described)))
    found = []
    for shard, whole in zip(described, indices, strict=True):
        lost = tuple(whole.quarantined)
        found.append(replace(index.shard(folder, shard, held_out=held_out), quarantined=lost))
    return tuple(found)
