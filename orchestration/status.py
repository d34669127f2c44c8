"""Tables for people: what is materialised, and what a recipe has reached."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.explain import causes
from yt8m_assets.stages.lineage import Lineage, require_current
from yt8m_assets.stages.nodes import ASSETS, Node, all_nodes
from yt8m_assets.storage import ArtifactStore

STYLES = {"current": "green", "stale": "yellow", "missing": "red"}


def states(lineage: Lineage) -> dict[Node, str]:
    """Every required node: current, stale (it or something it comes from has changed) or missing."""
    return {node: lineage.state(node) for node in all_nodes(lineage.recipe)}


def column_of(node: Node) -> str:
    """Heading of the column that shows the state of a model's node."""
    return ASSETS[node.asset].column or node.asset


def summarise(values: Sequence[str]) -> str:
    """One state for several nodes: the worst of them, and how many are current where there are several."""
    worst = next((state for state in ("missing", "stale") if state in values), "current")
    count = f"{sum(value == 'current' for value in values)}/{len(values)}"
    several = count if worst == "current" else f"{worst} {count}"
    return f"[{STYLES[worst]}]{worst if len(values) == 1 else several}[/]"


MAX_CAUSES = 10
"""Reasons for what is stale that are shown below the table."""


def status_report(recipe: Recipe, store: ArtifactStore) -> Iterator[Any]:
    """The table, and below it why something is stale: where that begins, in words."""
    lineage = Lineage(recipe, store)
    found = states(lineage)
    yield status_table(lineage, found)
    stale = [cause for node, text in found.items() if text == "stale" for cause in causes(lineage, node)]
    begins = list(dict.fromkeys(stale))
    yield from (f"stale  {cause}" for cause in begins[:MAX_CAUSES])
    if len(begins) > MAX_CAUSES:
        yield f"and {len(begins) - MAX_CAUSES} more: yt8m explain"


def status_table(lineage: Lineage, found: dict[Node, str]) -> Table:
    """A row per model, and one per asset without partitions."""
    recipe = lineage.recipe
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(escape(f"recipe {recipe.name}"), no_wrap=True)
    columns = list(dict.fromkeys(column_of(node) for node in found if node.model is not None))
    for name in columns:
        table.add_column(name, no_wrap=True)
    table.add_column("best MAP", justify="right", no_wrap=True)
    for model in recipe.models:
        cells = [
            summarise([state for node, state in found.items() if node.model == model.key and column_of(node) == name])
            for name in columns
        ]
        table.add_row(model.key, *cells, best_map(lineage, Node("finetuned_model", model.key)))
    table.add_section()
    for node, state in found.items():
        if node.model is None:
            table.add_row(node.asset, summarise([state]), *[""] * (len(columns) - 1), best_map(lineage, node))
    return table


def best_map(lineage: Lineage, node: Node) -> str:
    """The MAP in a manifest's metadata, where it is up to date and has one."""
    manifest = lineage.current(node)
    metadata: dict[str, Any] = manifest.metadata if manifest else {}
    value = next((metadata[name] for name in ("best_map", "map", "map_at_100000") if name in metadata), None)
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def summary(recipe: Recipe, store: ArtifactStore) -> Iterator[Any]:
    """The leaderboard, where submission and report lie, and what to try next."""
    from yt8m_assets.reports.leaderboard import leaderboard_table

    report = require_current(recipe, store, Node("leaderboard"))
    submission = require_current(recipe, store, Node("submission"))
    pages = [name for name in report.files if name.endswith(".html")]
    yield leaderboard_table(store, recipe)
    yield ""
    yield f"submission  {store.uri(submission, 'submission.csv')}"
    yield from (f"report      {store.uri(report, name)}" for name in pages)
    yield "next        make ui     (the same in Dagster and MLflow)   or   .venv/bin/yt8m status"
