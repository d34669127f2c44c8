"""A manifest as Dagster metadata: the quality first, then plots, links and where the files are."""

import base64
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import dagster as dg

from yt8m_assets.assets.tables import table_metadata
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage import REPORT_FOLDER, ArtifactStore, Manifest, StageResult

MAX_PLOT_SIZE = 400_000
"""Bytes of a plot shown inline; a larger one is only linked."""
MAX_PLOTS = 6
"""Plots shown inline."""
MAX_LISTED_FILES = 50
"""Files listed by name."""
SIGNIFICANT_DIGITS = 6
"""Of the numbers shown; the manifest keeps them all."""
SHOWN_NAMES = {"map": "map_at_100000"}
"""One name for one figure: stages call the hold-out MAP at 100,000 by either."""
_QUALITY, _GAIN = re.compile(r"(^|_)map(_|$)"), re.compile(r"(^|_)gain(_|$)")


def metadata_value(value: Any) -> Any:
    """A JSON value as the metadata type that reads best."""
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return dg.MetadataValue.url(value)
    if isinstance(value, str) and value.startswith("|") and "\n|" in value:
        return dg.MetadataValue.md(value)
    if value is None:
        return dg.MetadataValue.null()
    short = rounded(value)
    return short if isinstance(short, bool | int | float | str) else dg.MetadataValue.json(short)


def rounded(value: Any) -> Any:
    """A JSON value with every float at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def shown_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values under the names that people read, in the order in which they ask."""
    ordered = sorted(((SHOWN_NAMES.get(name, name), value) for name, value in values.items()), key=reading_order)
    return {name: metadata_value(value) for name, value in ordered}


def reading_order(item: tuple[str, Any]) -> tuple[int, str]:
    """Every MAP, then gains, other numbers, the way to MLflow, tables and texts, and last what needs a click."""
    name, value = item
    if isinstance(value, int | float) and not isinstance(value, bool):
        if _QUALITY.search(name):
            return (0 if name.startswith("map") else 1), name
        return (2 if _GAIN.search(name) else 3), name
    if name == "mlflow_url":
        return 4, name
    if isinstance(value, str):
        return (5 if value.startswith("|") else 6), name
    return 7, name


def plots(store: ArtifactStore, manifest: Manifest) -> dict[str, Any]:
    """The PNG files of the report as inline pictures."""
    names = [
        name
        for name, entry in sorted(manifest.files.items())
        if PurePosixPath(name).parts[0] == REPORT_FOLDER and name.endswith(".png") and entry["size"] <= MAX_PLOT_SIZE
    ][:MAX_PLOTS]
    if not names:
        return {}
    try:
        folder = store.fetch(manifest, tuple(names))
    except CorruptArtifactError as error:  # only shown: no reason to fail
        return {"plots": str(error)}
    shown = {}
    for name in names:
        title = PurePosixPath(name).stem
        picture = base64.b64encode((folder / name).read_bytes()).decode()
        shown[f"plot: {title}"] = dg.MetadataValue.md(f"![{title}](data:image/png;base64,{picture})")
    return shown


def manifest_metadata(store: ArtifactStore, result: StageResult) -> dict[str, Any]:
    """What the UI shows of a result."""
    manifest = result.manifest
    pages = [name for name in sorted(manifest.files) if name.endswith((".html", ".csv"))]
    return {
        **({"reused": True} if result.reused else {}),  # nothing was computed: the first thing to know
        **shown_values(manifest.metadata),
        **plots(store, manifest),
        **{PurePosixPath(name).name: dg.MetadataValue.url(manifest.page(name)) for name in pages},
        "uri": dg.MetadataValue.path(store.uri(manifest)),
        "dagster/uri": store.uri(manifest),
        **table_metadata(store, manifest),
        "size_bytes": manifest.size,
        "files": files_table(manifest),
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "generation": manifest.generation,
        **({} if result.reused else {"reused": False}),
    }


def files_table(manifest: Manifest) -> dg.MetadataValue:
    """Name, size and sha256 of the files; the names lead to where `yt8m ui` hands them out."""
    rows = [
        f"| [{name}]({manifest.page(name)}) | {entry['size']:,} | `{entry['sha256'][:16]}` |"
        for name, entry in manifest.files.items()
    ]
    more = [f"| and {len(rows) - MAX_LISTED_FILES} more | | |"] if len(rows) > MAX_LISTED_FILES else []
    head = ["| file | bytes | sha256 |", "|---|---:|---|"]
    return dg.MetadataValue.md("\n".join([*head, *rows[:MAX_LISTED_FILES], *more]))
