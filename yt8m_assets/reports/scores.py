"""A ranking with its scores as one file for other programs: CSV or Parquet, class by class, best first."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.lineage import require_current, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, atomic_write

if TYPE_CHECKING:
    from yt8m_assets.ranking.files import RankingSource

COLUMNS = ("class_id", "place", "video_id", "start", "score")


def published_ranking(recipe: Recipe, store: ArtifactStore, node: Node) -> "RankingSource":
    """The ranking of a cell, of a model, or the one that the submission lists.

    Raises MissingArtifactError or ParentMismatchError where it is not there or not up to date.
    """
    from yt8m_assets.ranking.files import RankingReader
    from yt8m_assets.stages.ensemble import read_weights
    from yt8m_assets.stages.submission import fuse_tests

    manifest = require_current(recipe, store, node)
    if node.asset != "submission":
        return RankingReader(store.fetch(manifest))
    inputs = resolve_inputs(recipe, store, node)
    return fuse_tests(recipe, store, inputs, read_weights(store.fetch(inputs.parent("ensemble_weights"))))


def write_scores(ranking: "RankingSource", path: Path, on_class: Callable[[], None] = lambda: None) -> int:
    """Write class, place (from 1), video, start and score of every entry; returns their number. Atomic.

    The suffix says how: `.csv`, or `.parquet` with a row group for each class. Raises ConfigError for another one.
    """
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    if path.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: scores are written as .csv or .parquet")
    types = (pa.int32(), pa.int32(), pa.string(), pa.int32(), pa.float32())
    schema, segments, total = pa.schema(list(zip(COLUMNS, types, strict=True))), ranking.segments, 0
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".csv":
            file.write(",".join(COLUMNS).encode() + b"\n")  # the library would quote it
            writer: Any = csv.CSVWriter(file, schema, write_options=csv.WriteOptions(include_header=False))
        else:
            writer = pq.ParquetWriter(file, schema, compression="zstd")
        with writer:
            for class_id in ranking.class_ids.tolist():
                segment, score = ranking.entries(class_id)
                columns: list[Any] = [
                    np.full(len(segment), class_id, np.int32),
                    np.arange(1, len(segment) + 1, dtype=np.int32),
                    segments.video_ids[segments.video[segment]].tolist(),
                    segments.start[segment],
                    score,
                ]
                arrays = [pa.array(values, kind) for values, kind in zip(columns, types, strict=True)]
                if len(segment):
                    writer.write_table(pa.Table.from_arrays(arrays, schema=schema), max(1, len(segment)))
                total += len(segment)
                on_class()
    return total
