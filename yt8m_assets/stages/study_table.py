"""What a study leaves behind: its trials as a table, a picture of them, and the best settings as a recipe."""

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from yt8m_assets.storage import Publication, canonical_json
from yt8m_assets.verbatim import markdown_table

TRIALS, BEST = "trials", "best.json"
Row = Mapping[str, Any]


def write_study(
    publication: Publication, rows: Sequence[Row], best: int, recipe: Mapping[str, Any], title: str
) -> None:
    """Write trials.csv and trials.parquet, best.json and the picture into an artifact that is about to be published."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from yt8m_assets.training.study_plot import draw_study

    table = columns_hold([flat(row) for row in rows])
    with (publication.path / f"{TRIALS}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    pq.write_table(pa.Table.from_pylist(table), publication.path / f"{TRIALS}.parquet")
    (publication.path / BEST).write_text(json.dumps(recipe, indent=1) + "\n")
    draw_study(rows, best, title, publication.report_path / "study.png")


def flat(row: Row) -> dict[str, Any]:
    """A trial as a row of the table; what a cell cannot hold is JSON."""
    point = {
        name: value if isinstance(value, str | int | float | None) else canonical_json(value)
        for name, value in row["point"].items()
    }
    return {"trial": row["number"], "status": row["status"], "map": row["score"], "steps": row["steps"], **point}


def columns_hold(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows, with JSON in those columns whose values are of several kinds (numbers and words, say)."""
    kinds = {
        name: {"number" if type(row[name]) in (int, float) else type(row[name]) for row in rows} - {type(None)}
        for name in rows[0]
    }
    return [
        {name: canonical_json(value) if len(kinds[name]) > 1 else value for name, value in row.items()} for row in rows
    ]


def study_metadata(rows: Sequence[Row], best: int) -> dict[str, Any]:
    """What people want to know first, and the trials as a Markdown table, best first."""
    counts = {name: sum(row["status"] == name for row in rows) for name in ("completed", "pruned", "failed")}
    ordered = sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
    cells = [[_cell(value) for value in flat(row).values()] for row in ordered]
    return {
        "best_map_in_training": rows[best]["score"],
        "best_settings": dict(rows[best]["point"]),
        "steps": sum(row["steps"] for row in rows),
        "trials": len(rows),
        **counts,
        "table": markdown_table(list(flat(rows[0])), cells),
    }


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
