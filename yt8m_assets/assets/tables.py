"""Which artifacts are tables, as Dagster's pages show them."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from yt8m_assets.storage import ArtifactStore, Manifest

TABLES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "ranking.parquet": (
        ("class_id", "int32", "class, in the vocabulary's order"),
        ("segment", "int32", "row of segments.parquet; best first within a class"),
        ("score", "float32", "never rises within a class"),
    ),
    "ratings.csv": (
        ("segment_id", "string", "video_id:start"),
        ("class_id", "int", "class"),
        ("score", "float", "1: the segment shows the class, 0: it does not"),
    ),
    "submission.csv": (
        ("Class", "int", "rated class"),
        ("Segments", "string", "ids video_id:start, best first"),
    ),
}
"""File -> columns (name, type, meaning) of the artifacts that are tables."""
WITH_HEADER = ("submission.csv",)
"""Tables whose first line names the columns."""


def table_metadata(store: ArtifactStore, manifest: Manifest) -> dict[str, Any]:
    """Columns and number of rows of the artifact's table, under the names by which Dagster's pages know them."""
    name = next((name for name in TABLES if name in manifest.files), None)
    if name is None:
        return {}
    columns = [dg.TableColumn(*column) for column in TABLES[name]]
    path = store.fetch(manifest, (name,)) / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            num_rows = pq.read_metadata(path).num_rows
        except pa.ArrowException:  # what is no table is for the checks to name
            return {}
    else:
        with path.open("rb") as file:
            num_rows = sum(1 for _ in file) - (name in WITH_HEADER)
    return {"dagster/row_count": num_rows, "dagster/column_schema": dg.TableSchema(columns=columns)}
