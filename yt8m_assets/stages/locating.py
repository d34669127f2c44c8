"""Where a recipe's shards lie now, and that they are the ones that were published.

Nothing published names a place: a list of shards holds names and checksums, and the recipe says where to look.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from yt8m_assets.data.dataset.folds import original_holdout, seeded_holdout
from yt8m_assets.data.dataset.identity import content_checksums
from yt8m_assets.data.dataset.shards import Listed, list_shards, shard_names
from yt8m_assets.data.records.framing import read_whole
from yt8m_assets.errors import DataError, MissingDataError
from yt8m_assets.progress import NullProgress, Progress
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, canonical_json, sha256_text
from yt8m_assets.storage.backend import LocalBackend

_SPLITS = {"pretraining_shards": ("train", "validate"), "segment_shards": ("validate",), "test_shards": ("test",)}


def simulated_folder(recipe: Recipe, store: ArtifactStore) -> Path:
    """Where a simulated recipe's shards are written on this machine."""
    simulation = recipe.data.simulation
    name = sha256_text(canonical_json(plain(simulation and simulation.identity())))[:12]
    root = store.backend.root if isinstance(store.backend, LocalBackend) else store.cache_path
    return root / "simulated" / name


def locate_shards(
    recipe: Recipe, store: ArtifactStore, asset: str, progress: Progress | None = None
) -> dict[str, Listed]:
    """URI -> what a listing says of each shard of an asset (`pretraining_shards`, ...) as they lie now.

    Simulated shards that are not there are simulated. Raises MissingDataError for a pattern without a match.
    """
    data = recipe.data
    if data.simulation is None:
        patterns = {"pretraining_shards": data.pretraining, "segment_shards": data.segments, "test_shards": data.test}
        return list_data(recipe, patterns[asset])
    from yt8m_assets.data.simulation import dataset_paths, write_dataset

    folder = simulated_folder(recipe, store)
    paths = dataset_paths(data.simulation, folder)
    written = [path for split in _SPLITS[asset] for path in paths.of_split(split)]
    if not all(path.is_file() for path in (*written, paths.segment_label_ids, paths.vocabulary)):
        write_dataset(data.simulation, folder, _SPLITS[asset], progress=progress or NullProgress())
    groups = {"pretraining_shards": paths.train + paths.validate, "segment_shards": paths.segments}
    uris = set(_shared_uris(store, folder, groups.get(asset, paths.test)))
    listed = list_shards(sorted({f"{uri.rsplit('/', 1)[0]}/*.tfrecord" for uri in uris}))
    return {uri: found for uri, found in listed.items() if uri in uris}


def list_data(recipe: Recipe, patterns: Sequence[str]) -> dict[str, Listed]:
    """The shards of a recipe's patterns, or the recipe's share of them, which goes by their file names alone."""
    listed, share = list_shards(patterns), recipe.data.shard_share
    if share == 1:
        return listed
    drawn = {uri: crc32(uri.rsplit("/", 1)[-1].encode()) < share * 2**32 for uri in listed}
    chosen = {uri: found for uri, found in listed.items() if drawn[uri]}
    if not chosen:
        raise MissingDataError(f"data.shard_share = {share}: draws none of {len(listed)} shards; take a larger share")
    return chosen


def _shared_uris(store: ArtifactStore, folder: Path, paths: Sequence[Path]) -> list[str]:
    """The shards' paths, or their URIs in the store's bucket after they were put there (other machines read them too).

    One listing a folder, however many shards.
    """
    backend = store.backend
    if isinstance(backend, LocalBackend):
        return [str(path) for path in paths]
    names = {path: f"simulated/{folder.name}/{path.relative_to(folder).as_posix()}" for path in paths}
    there = {place: set(backend.names(place)) for place in {name.rsplit("/", 1)[0] for name in names.values()}}
    for path, name in names.items():
        if path.name not in there[name.rsplit("/", 1)[0]]:
            backend.put_file(path, name)
    return [f"{store.root_uri}/{name}" for name in names.values()]


def data_slice(recipe: Recipe, store: ArtifactStore, asset: str) -> dict[str, Any]:
    """What the files that a recipe names hold, as far as an asset depends on it; by content, wherever they lie."""
    data = recipe.data
    if data.simulation is not None:
        return {"simulation": plain(data.simulation.identity())}
    listing = locate_shards(recipe, store, asset)
    found: dict[str, Any] = {"shards": listing_digest(store, listing, shard_names(listing))}
    if asset == "pretraining_shards":
        rated = list_data(recipe, data.segments)
        held_out = held_out_shards(recipe, rated)  # what is left out of pre-training is known by the ids in them
        found["held_out"] = listing_digest(store, {uri: rated[uri] for uri in held_out}, shard_names(rated))
    if data.label_map_uri is not None and asset != "test_shards":
        found["label_map"] = file_digest(data.label_map_uri, "data.label_map_uri", store)
    if asset == "segment_shards":
        found["segment_classes"] = file_digest(data.segment_classes_uri, "data.segment_classes_uri", store)
        found["vocabulary"] = vocabulary_digest(recipe, store)
    return found


def listing_digest(store: ArtifactStore, listing: Mapping[str, Listed], names: Mapping[str, str]) -> str:
    """Hash of the names, sizes and contents of listed shards, preceded by their number."""
    checksums = content_checksums(store, listing)
    rows = [[name, str(listing[uri].size), checksums[uri]] for uri, name in names.items() if uri in listing]
    return f"{len(rows)} shards {sha256_text(canonical_json(rows))}"


def held_out_shards(recipe: Recipe, segment_uris: Iterable[str]) -> set[str]:
    """The segment shards that the recipe's rule holds out. Raises DataError where it is all or none."""
    rule, uris = recipe.data.holdout, list(segment_uris)
    if rule.rule == "original":
        held_out = original_holdout(uris, rule.num_shards)
    else:
        held_out = seeded_holdout(uris, rule.fraction, rule.seed)
    if not held_out or len(held_out) == len(uris):
        raise DataError(
            f"data.holdout = {rule}: {len(held_out)} of {len(uris)} segment shards would be held out; "
            "shards of both kinds are needed, so check the rule and the shards' names"
        )
    return held_out


def vocabulary_digest(recipe: Recipe, store: ArtifactStore) -> str | None:
    """Content of the file with the classes' names; None without one."""
    uri = recipe.data.vocabulary_uri
    return file_digest(uri, "data.vocabulary_uri", store) if uri else None


def file_digest(uri: str, field: str, store: ArtifactStore) -> str:
    """Hex sha256 of a small file, local or in a bucket. Raises MissingDataError naming the recipe's field."""
    try:
        return hashlib.sha256(read_whole(uri, store.cache.shards)).hexdigest()
    except OSError as error:
        raise MissingDataError(f"{field} = {uri!r}: cannot be read: {error.strerror or error}") from error
