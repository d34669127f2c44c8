"""The data stages of the graph: what the shards are, which are held out, and the held-out ratings."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yt8m_assets.data.dataset.folds import find_duplicates, require_unique
from yt8m_assets.data.dataset.identity import (
    SHARDS_FILE,
    VERSIONS_FILE,
    Identities,
    content_checksums,
    versions_text,
)
from yt8m_assets.data.dataset.index import ShardIndex, framing_of
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.packed import write_index
from yt8m_assets.data.dataset.ratings import collect_ratings
from yt8m_assets.data.dataset.scan import describe_shard
from yt8m_assets.data.dataset.shards import ShardManifest, shard_names
from yt8m_assets.data.dataset.shelf import IndexShelf
from yt8m_assets.data.records.framing import read_whole
from yt8m_assets.data.records.vocabulary import load_segment_classes, load_vocabulary
from yt8m_assets.data.simulation import dataset_paths
from yt8m_assets.errors import DataError, ParentMismatchError
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.overlay import plain
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.indexing import VIDEO_IDS_FILE, index_shards, read_index
from yt8m_assets.stages.lineage import Inputs, require_current, resolve_inputs
from yt8m_assets.stages.locating import held_out_shards, locate_shards, simulated_folder
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import REPORT_FOLDER, ArtifactStore, Manifest, Publication, StageResult

SEGMENT_CLASSES_FILE = "segment_label_ids.csv"
LABEL_MAP_FILE = "label_map.csv"
VOCABULARY_FILE = f"{REPORT_FOLDER}/vocabulary.csv"
"""Names for people, so not part of the content: no model is trained again because its classes got names."""
RATINGS_FILE = "ratings.csv"


def read_shards(recipe: Recipe, store: ArtifactStore, shards: Manifest | str) -> ShardManifest:
    """A published list of shards (a manifest, or the name of an asset), with where they lie now.

    Raises MissingArtifactError or ParentMismatchError where a named asset is not up to date, MissingDataError for a
    pattern without a match, ParentMismatchError naming a shard that is not there or not the one that was published.
    """
    manifest = require_current(recipe, store, Node(shards)) if isinstance(shards, str) else shards
    published = ShardManifest.read(store.fetch(manifest, (SHARDS_FILE,)) / SHARDS_FILE)
    listing = locate_shards(recipe, store, manifest.key)
    uris = {name: uri for uri, name in shard_names(listing).items()}
    checksums = content_checksums(store, listing)
    for shard in published.shards:
        if shard.name not in uris:
            raise ParentMismatchError(
                f"{shard.name} of {manifest.key} is not among the shards that the recipe names now; "
                f"materialise {manifest.key} again"
            )
        uri = uris[shard.name]
        if framing_of(checksums[uri]) != framing_of(shard.checksum):
            cure = "remove it, it is simulated again" if recipe.data.simulation else f"materialise {manifest.key} again"
            raise ParentMismatchError(
                f"{uri}: its content is not what {manifest.key} lists ({checksums[uri]}, published {shard.checksum}); "
                f"{cure}"
            )
    return published.located(uris, listing)


def read_segment_classes(recipe: Recipe, store: ArtifactStore, shards: Manifest | None = None) -> np.ndarray:
    """The rated classes, int32 [R], as published with the segment shards (those that are up to date, unless given)."""
    manifest = shards or require_current(recipe, store, Node("segment_shards"))
    folder = store.fetch(manifest, (SEGMENT_CLASSES_FILE,))
    return load_segment_classes(str(folder / SEGMENT_CLASSES_FILE), recipe.data.num_classes)


def make_shards(recipe: Recipe, store: ArtifactStore, asset: str, *, progress: Progress) -> StageResult:
    """Publish what the shards of `asset` are: files, sizes, checksums, counts, which are held out, and their index.

    Simulated shards that are not there are simulated. What is known of the shards is not read again: see
    `indexing.index_shards`. Raises MissingDataError for a pattern without a match,
    CorruptShardError for a damaged shard (unless the recipe quarantines), DataError for repeated videos among rated or
    test shards.
    """
    listing, reading = locate_shards(recipe, store, asset, progress), recipe.data.reading(store.cache)
    if store.numbers(asset):  # else everything has to be read once anyway
        inputs = resolve_inputs(recipe, store, Node(asset))
        if inputs.published is not None:
            IndexShelf(store.backend, asset).discard(listing, reading)
            return StageResult(inputs.published, reused=True)
    names = shard_names(listing)
    report = reading.new_report()
    ordered = {uri: listing[uri] for uri in names}
    indices = index_shards(store, asset, ordered, reading, report=report, progress=progress)
    held_out, rated, held_out_ids = _hold_out(recipe, store, asset, {index.uri: index for index in indices}, progress)
    seen = [(index.uri, listing[index.uri].version, index.checksum) for index in indices] + rated
    Identities(store.cache_path).note(seen)
    ids = {index.uri: index.ids for index in indices}
    kept_out = {
        i.uri: np.full(len(i), i.uri in held_out) if held_out_ids is None else np.isin(i.ids, held_out_ids)
        for i in indices
    }
    if asset != "pretraining_shards":
        require_unique(ids)  # a video twice would count twice in every MAP and submission
    shards = ShardManifest(
        shards=tuple(describe_shard(i, names[i.uri], i.uri in held_out, held_out_ids) for i in indices),
        quarantined=tuple(_named(plain(record), names) for record in report.quarantined),
        notes={"duplicates": [str(duplicate) for duplicate in find_duplicates(ids)]},
    )
    inputs = resolve_inputs(recipe, store, Node(asset))
    with store.publish(asset, **inputs.publish_arguments()) as publication:
        (publication.path / SHARDS_FILE).write_text(shards.to_json())
        _write_video_ids(publication.path / VIDEO_IDS_FILE, indices, kept_out)
        write_index(publication.path, indices, kept_out)
        (publication.report_path / Path(VERSIONS_FILE).name).write_text(versions_text(entry[1:] for entry in seen))
        if asset == "segment_shards":
            _copy_vocabularies(recipe, store, publication)
        if recipe.data.label_map_uri is not None and asset != "test_shards":  # content: what is made of it follows
            content = read_whole(recipe.data.label_map_uri, store.cache.shards)
            (publication.path / LABEL_MAP_FILE).write_bytes(content)
        publication.metadata.update(_describe(shards))
    IndexShelf(store.backend, asset).sweep()
    return publication.result


def _hold_out(
    recipe: Recipe, store: ArtifactStore, asset: str, indices: Mapping[str, ShardIndex], progress: Progress
) -> tuple[set[str], list[tuple[str, str, str]], np.ndarray | None]:
    """Shards of an asset held out as a whole; in pre-training (URI, version, checksum) and video ids of the rated ones.

    What both releases hold is known by its id (S11 [n]): neither the files' names nor their number need be the same.
    """
    if asset == "test_shards":
        return set(), [], None
    if asset == "segment_shards":
        return held_out_shards(recipe, indices), [], None
    listing = locate_shards(recipe, store, "segment_shards", progress)
    reading = recipe.data.reading(store.cache)
    quiet = reading.new_report(quiet=True)  # told by segment_shards
    chosen = {uri: listing[uri] for uri in sorted(held_out_shards(recipe, listing))}
    rated = index_shards(store, "segment_shards", chosen, reading, report=quiet, progress=progress)
    seen = [(index.uri, listing[index.uri].version, index.checksum) for index in rated]
    return set(), seen, np.unique(np.concatenate([index.ids for index in rated]))


def _named(record: dict[str, object], names: Mapping[str, str]) -> dict[str, object]:
    """A quarantined record with its shard's name instead of the place where that lies."""
    return {"shard": names[str(record.pop("uri"))], **record}


def _describe(shards: ShardManifest) -> dict[str, object]:
    names = ("num_videos", "num_frames", "num_labels", "num_ratings", "num_segments_beyond_end", "size")
    totals = {("size_bytes" if name == "size" else name): shards.total(name) for name in names}
    return {
        "num_shards": len(shards.shards),
        "num_held_out_shards": len(shards.uris(held_out=True)),
        "num_held_out_videos": shards.total("num_held_out"),
        "num_quarantined": sum(record["num_records"] for record in shards.quarantined),
        "num_lost_bytes": sum(record["num_bytes"] for record in shards.quarantined),
        "num_duplicate_ids": len(shards.notes["duplicates"]),
        **totals,
    }


def _write_video_ids(path: Path, indices: list[ShardIndex], kept_out: Mapping[str, np.ndarray]) -> None:
    """Columns shard (place in shards.json), video_id, held_out: what the index says, for people and for the digest."""
    import pyarrow
    import pyarrow.parquet

    shard = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index) for index in indices])
    ids = pyarrow.array(np.concatenate([index.ids for index in indices]), pyarrow.binary()).cast(pyarrow.string())
    held_out = np.concatenate([kept_out[index.uri] for index in indices])
    columns = {"shard": shard, "video_id": ids, "held_out": held_out}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def _copy_vocabularies(recipe: Recipe, store: ArtifactStore, publication: Publication) -> None:
    data, copies = recipe.data, store.cache.shards
    if data.simulation is None:
        classes_uri, vocabulary_uri = data.segment_classes_uri, data.vocabulary_uri
    else:
        paths = dataset_paths(data.simulation, simulated_folder(recipe, store))
        classes_uri, vocabulary_uri = str(paths.segment_label_ids), str(paths.vocabulary)
    classes = load_segment_classes(classes_uri, data.num_classes, copies)
    (publication.path / SEGMENT_CLASSES_FILE).write_bytes(read_whole(classes_uri, copies))
    publication.metadata["num_rated_classes"] = len(classes)
    if vocabulary_uri:
        load_vocabulary(vocabulary_uri, store.cache.shards)
        (publication.report_path / Path(VOCABULARY_FILE).name).write_bytes(read_whole(vocabulary_uri, copies))


def make_holdout_ratings(recipe: Recipe, store: ArtifactStore, *, progress: Progress) -> StageResult:
    """Publish the ratings of the held-out segment shards as `ratings.csv` (segment id, class, score)."""
    node = Node("holdout_ratings")
    inputs: Inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    segments = inputs.parent("segment_shards")
    shards = read_index(store, segments, read_shards(recipe, store, segments), held_out=True)
    videos = load_videos(shards, recipe.data.reading(store.cache), progress=progress)
    classes = read_segment_classes(recipe, store, segments)
    _, ratings = collect_ratings(videos, recipe.data.num_classes, classes)
    if not len(ratings):
        raise DataError("the held-out segment shards hold no rating; check data.segments and data.holdout")
    with store.publish(node.key, **inputs.publish_arguments()) as publication:
        rows = zip(ratings.segment_ids, ratings.class_ids.tolist(), ratings.scores.tolist(), strict=True)
        lines = (f"{segment},{class_id},{score:g}\n" for segment, class_id, score in rows)
        (publication.path / RATINGS_FILE).write_text("".join(lines))
        num_positive = int((ratings.scores > 0).sum())
        publication.metadata.update(
            num_ratings=len(ratings),
            num_positive=num_positive,
            positive_share=num_positive / len(ratings),
            num_videos=len(set(ratings.video_ids)),
            num_classes=len(np.unique(ratings.class_ids)),
            num_rated_twice=ratings.num_repeated,
        )
    return publication.result
