"""A manifest as Dagster metadata: the numbers first, then plots, links and where the files are."""

import base64
from pathlib import PurePosixPath
from typing import Any

import dagster as dg

from yt8m_assets.storage import REPORT_FOLDER, ArtifactStore, Manifest, StageResult

MAX_PLOT_SIZE = 400_000
"""Bytes of a plot shown inline; a larger one is only linked."""
MAX_PLOTS = 6
"""Plots shown inline."""
MAX_LISTED_FILES = 50
"""Files listed by name."""


def metadata_value(value: Any) -> Any:
    """A JSON value as the metadata type that reads best."""
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        return dg.MetadataValue.url(value)
    if isinstance(value, str) and value.startswith("|") and "\n|" in value:
        return dg.MetadataValue.md(value)
    if isinstance(value, bool | int | float | str):
        return value
    if value is None:
        return dg.MetadataValue.null()
    return dg.MetadataValue.json(value)


def reading_order(item: tuple[str, Any]) -> tuple[int, str]:
    """Quality first, then numbers, texts and links, and last what needs a click to be read."""
    name, value = item
    if isinstance(value, str) and value.startswith("|"):
        return 0, name
    if "map" in name and isinstance(value, int | float):
        return 0, name
    if isinstance(value, int | float):
        return 1, name
    return (2 if isinstance(value, str) else 3), name


def plots(store: ArtifactStore, manifest: Manifest) -> dict[str, Any]:
    """The PNG files of the report as inline pictures."""
    names = [
        name
        for name, entry in sorted(manifest.files.items())
        if PurePosixPath(name).parts[0] == REPORT_FOLDER and name.endswith(".png") and entry["size"] <= MAX_PLOT_SIZE
    ][:MAX_PLOTS]
    if not names:
        return {}
    folder = store.fetch(manifest, tuple(names))
    shown = {}
    for name in names:
        title = PurePosixPath(name).stem
        picture = base64.b64encode((folder / name).read_bytes()).decode()
        shown[f"plot: {title}"] = dg.MetadataValue.md(f"![{title}](data:image/png;base64,{picture})")
    return shown


def manifest_metadata(store: ArtifactStore, result: StageResult) -> dict[str, Any]:
    """What the UI shows of a result."""
    manifest = result.manifest
    pages = [name for name in sorted(manifest.files) if name.startswith(f"{REPORT_FOLDER}/") and name.endswith(".html")]
    return {
        **{name: metadata_value(value) for name, value in sorted(manifest.metadata.items(), key=reading_order)},
        **plots(store, manifest),
        **{PurePosixPath(name).name: dg.MetadataValue.path(store.uri(manifest, name)) for name in pages},
        "uri": dg.MetadataValue.path(store.uri(manifest)),
        "size_bytes": manifest.size,
        "files": files_table(manifest),
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "generation": manifest.generation,
        "reused": result.reused,
    }


def files_table(manifest: Manifest) -> dg.MetadataValue:
    """Name, size and sha256 of the files."""
    rows = [f"| {name} | {entry['size']:,} | `{entry['sha256'][:16]}` |" for name, entry in manifest.files.items()]
    more = [f"| and {len(rows) - MAX_LISTED_FILES} more | | |"] if len(rows) > MAX_LISTED_FILES else []
    head = ["| file | bytes | sha256 |", "|---|---:|---|"]
    return dg.MetadataValue.md("\n".join([*head, *rows[:MAX_LISTED_FILES], *more]))
