"""The data stages of the graph: what the shards are, which are held out, and the held-out ratings."""

import shutil
from pathlib import Path

import numpy as np

from yt8m_assets.data.folds import find_duplicates, original_holdout, require_unique, seeded_holdout
from yt8m_assets.data.framing import local_file
from yt8m_assets.data.index import ShardIndex
from yt8m_assets.data.ratings import load_ratings
from yt8m_assets.data.reader import ReadReport
from yt8m_assets.data.scan import describe_shard, scan_shards
from yt8m_assets.data.shards import ShardManifest, expand_patterns
from yt8m_assets.data.simulation import dataset_paths, write_dataset
from yt8m_assets.data.vocabulary import load_segment_classes, load_vocabulary
from yt8m_assets.errors import DataError
from yt8m_assets.lineage import Inputs, Node, plain, resolve_inputs
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore, Publication, StageResult, canonical_json, sha256_text
from yt8m_assets.storage_backend import LocalBackend

SEGMENT_CLASSES_FILE = "segment_label_ids.csv"
VOCABULARY_FILE = "vocabulary.csv"
SHARDS_FILE = "shards.json"
VIDEO_IDS_FILE = "video_ids.parquet"
RATINGS_FILE = "ratings.csv"
_SPLITS = {"pretraining_shards": ("train", "validate"), "segment_shards": ("validate",), "test_shards": ("test",)}


def index_cache(store: ArtifactStore) -> Path:
    """Folder of the shards' sidecar indexes."""
    return store.cache_path / "indexes"


def simulated_folder(recipe: Recipe, store: ArtifactStore) -> Path:
    """Where a simulated recipe's shards are written on this machine."""
    name = sha256_text(canonical_json(plain(recipe.data.simulation)))[:12]
    root = store.backend.root if isinstance(store.backend, LocalBackend) else store.cache_path
    return root / "simulated" / name


def read_shards(store: ArtifactStore, manifest_key: str) -> ShardManifest:
    """The published list of shards of `pretraining_shards`, `segment_shards` or `test_shards`."""
    return ShardManifest.read(store.fetch(store.require(manifest_key), (SHARDS_FILE,)) / SHARDS_FILE)


def read_segment_classes(recipe: Recipe, store: ArtifactStore) -> np.ndarray:
    """The rated classes, int32 [R], as published with the segment shards."""
    manifest = store.require(Node("segment_shards").key)
    folder = store.fetch(manifest, (SEGMENT_CLASSES_FILE,))
    return load_segment_classes(str(folder / SEGMENT_CLASSES_FILE), recipe.data.num_classes)


def find_shards(recipe: Recipe, store: ArtifactStore, asset: str, progress: Progress) -> tuple[list[str], set[str]]:
    """URIs of an asset's shards, and the file names that are held out; simulates the shards if the recipe says so."""
    data = recipe.data
    if data.simulation is None:
        patterns = {"pretraining_shards": data.pretraining, "segment_shards": data.segments, "test_shards": data.test}
        uris = expand_patterns(patterns[asset])
        segment_uris = [] if asset == "test_shards" else expand_patterns(data.segments)
    else:
        folder = simulated_folder(recipe, store)
        write_dataset(data.simulation, folder, _SPLITS[asset], progress=progress)
        paths = dataset_paths(data.simulation, folder)
        groups = {"pretraining_shards": paths.train + paths.validate, "segment_shards": paths.segments}
        uris = sorted(_shared_uri(store, folder, path) for path in groups.get(asset, paths.test))
        segment_uris = [str(path) for path in paths.segments]
    if asset == "test_shards":
        return uris, set()
    rule = data.holdout
    if rule.rule == "original":
        held_out = original_holdout(segment_uris, rule.num_shards)
    else:
        held_out = seeded_holdout(segment_uris, rule.fraction, rule.seed)
    if not held_out or len(held_out) == len(segment_uris):
        raise DataError(
            f"data.holdout = {rule}: {len(held_out)} of {len(segment_uris)} segment shards would be held out; "
            "shards of both kinds are needed, so check the rule and the shards' names"
        )
    return uris, {uri.rsplit("/", 1)[-1] for uri in held_out}


def _shared_uri(store: ArtifactStore, folder: Path, path: Path) -> str:
    """The shard's path, or its URI in the store's bucket after it was put there (other machines read it too)."""
    backend = store.backend
    if isinstance(backend, LocalBackend):
        return str(path)
    name = f"simulated/{folder.name}/{path.relative_to(folder).as_posix()}"
    if path.name not in backend.names(name.rsplit("/", 1)[0]):
        backend.put_file(path, name)
    return f"{store.root_uri}/{name}"


def make_shards(recipe: Recipe, store: ArtifactStore, asset: str, *, progress: Progress) -> StageResult:
    """Publish what the shards of `asset` are: files, sizes, checksums, counts, ids, and which are held out.

    Raises MissingDataError for a pattern without a match, CorruptShardError for a damaged shard (unless the recipe
    quarantines), DataError for repeated videos among rated or test shards.
    """
    inputs = resolve_inputs(recipe, store, Node(asset))
    manifest = store.manifest(asset)
    if manifest and manifest.fingerprint == inputs.fingerprint:
        return StageResult(manifest, reused=True)
    uris, held_out_names = find_shards(recipe, store, asset, progress)
    report = ReadReport()
    indices = scan_shards(
        uris,
        cache_path=index_cache(store),
        feature_sizes=recipe.data.feature_sizes,
        on_corrupt=recipe.data.on_corrupt,
        report=report,
        progress=progress,
    )
    ids = {index.uri: index.video_ids for index in indices}
    if asset != "pretraining_shards":
        require_unique(ids)  # a video twice would count twice in every MAP and submission
    shards = ShardManifest(
        shards=tuple(describe_shard(index, index.uri.rsplit("/", 1)[-1] in held_out_names) for index in indices),
        quarantined=tuple(plain(record) for record in report.quarantined),
        notes={"duplicates": [str(duplicate) for duplicate in find_duplicates(ids)]},
    )
    with store.publish(asset, **inputs.publish_arguments()) as publication:
        (publication.path / SHARDS_FILE).write_text(shards.to_json())
        _write_video_ids(publication.path / VIDEO_IDS_FILE, indices)
        if asset == "segment_shards":
            _copy_vocabularies(recipe, store, publication)
        publication.metadata.update(_describe(shards))
    return _result(publication)


def _describe(shards: ShardManifest) -> dict[str, object]:
    names = ("num_videos", "num_frames", "num_labels", "num_ratings", "num_segments_beyond_end", "size")
    totals = {("size_bytes" if name == "size" else name): shards.total(name) for name in names}
    return {
        "num_shards": len(shards.shards),
        "num_held_out_shards": len(shards.uris(held_out=True)),
        "num_held_out_videos": shards.total("num_videos", held_out=True),
        "num_quarantined": len(shards.quarantined),
        "num_duplicate_ids": len(shards.notes["duplicates"]),
        **totals,
    }


def _write_video_ids(path: Path, indices: list[ShardIndex]) -> None:
    """Columns shard (place in shards.json) and video_id: which video lies where, for the leak check and for people."""
    import pyarrow
    import pyarrow.parquet

    shard = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index.ids) for index in indices])
    ids = [video_id for index in indices for video_id in index.video_ids]
    table = pyarrow.table({"shard": shard, "video_id": pyarrow.array(ids, pyarrow.string())})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _copy_vocabularies(recipe: Recipe, store: ArtifactStore, publication: Publication) -> None:
    data = recipe.data
    if data.simulation is None:
        classes_uri, vocabulary_uri = data.segment_classes_uri, data.vocabulary_uri
    else:
        paths = dataset_paths(data.simulation, simulated_folder(recipe, store))
        classes_uri, vocabulary_uri = str(paths.segment_label_ids), str(paths.vocabulary)
    classes = load_segment_classes(classes_uri, data.num_classes)
    shutil.copyfile(local_file(classes_uri), publication.path / SEGMENT_CLASSES_FILE)
    publication.metadata["num_rated_classes"] = len(classes)
    if vocabulary_uri:
        load_vocabulary(vocabulary_uri)
        shutil.copyfile(local_file(vocabulary_uri), publication.path / VOCABULARY_FILE)


def make_holdout_ratings(recipe: Recipe, store: ArtifactStore, *, progress: Progress) -> StageResult:
    """Publish the ratings of the held-out segment shards as `ratings.csv` (segment id, class, score)."""
    node = Node("holdout_ratings")
    inputs: Inputs = resolve_inputs(recipe, store, node)
    manifest = store.manifest(node.key)
    if manifest and manifest.fingerprint == inputs.fingerprint:
        return StageResult(manifest, reused=True)
    ratings = load_ratings(
        read_shards(store, "segment_shards").uris(held_out=True),
        num_classes=recipe.data.num_classes,
        segment_classes=read_segment_classes(recipe, store),
        max_frames=recipe.data.max_frames,
        feature_sizes=recipe.data.feature_sizes,
        on_corrupt=recipe.data.on_corrupt,
        index_cache_path=index_cache(store),
        progress=progress,
    )
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
    return _result(publication)


def _result(publication: Publication) -> StageResult:
    assert publication.manifest is not None, "leaving the block publishes"
    return StageResult(publication.manifest)
