"""The leaderboard: the report of the whole graph, as JSON, one HTML page, pictures, and a table for the terminal."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets import verbatim
from yt8m_assets.progress import Progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.ensemble import lineage_tags
from yt8m_assets.stages.lineage import Inputs, require_current, resolve_inputs
from yt8m_assets.stages.nodes import Node
from yt8m_assets.storage import ArtifactStore, StageResult
from yt8m_assets.tracking import TrackedRun, Tracking
from yt8m_assets.tracking.system import code_tags

if TYPE_CHECKING:
    from rich.table import Table

    from yt8m_assets.evaluation import Ratings

LEADERBOARD_FILE = "leaderboard.json"
PAGE_FILE = "leaderboard.html"


def make_leaderboard(
    recipe: Recipe, store: ArtifactStore, *, tracking: Tracking, progress: Progress, run_tags: Mapping[str, str]
) -> StageResult:
    """Compute and publish the report. Raises MissingArtifactError naming what is not materialised."""
    node = Node("leaderboard")
    inputs = resolve_inputs(recipe, store, node)
    if inputs.published is not None:
        return StageResult(inputs.published, reused=True)
    from yt8m_assets.reports.figures import collect_figures
    from yt8m_assets.reports.page import write_page
    from yt8m_assets.reports.per_class import PER_CLASS_FILE, holdout_results, per_class_table, write_table
    from yt8m_assets.reports.plots import draw_leaderboard
    from yt8m_assets.reports.timeline import busiest_video, make_timeline

    tags = lineage_tags(recipe, inputs, run_tags)
    with (
        store.publish(node.key, **inputs.publish_arguments()) as publication,
        tracking.run("leaderboard", kind="report", params={"recipe": recipe.name}, tags=tags) as run,
    ):
        for asset, context in (("holdout_ratings", "holdout"), ("test_shards", "test")):
            data = inputs.parent(asset)
            run.log_dataset(asset, digest=data.digest, source_uri=store.uri(data), context=context)
        figures = collect_figures(recipe, store, inputs, progress)
        text = json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n"
        (publication.path / LEADERBOARD_FILE).write_text(text)
        report = publication.report_path
        results, ratings = holdout_results(recipe, store, inputs)
        columns, rows = per_class_table(results, ratings, store, inputs.parent("segment_shards"))
        write_table(columns, rows, report / PER_CLASS_FILE)
        pictures = draw_leaderboard(figures, report)
        video_id = busiest_video(store, inputs.parent("holdout_ratings"))
        pictures[f"A video second by second: {video_id}"] = make_timeline(recipe, store, video_id, report)
        write_page(figures, pictures, report / PAGE_FILE, page_facts(recipe, store, inputs), run_links(inputs, run))
        run.log_artifact(report)
        run.log_artifact(publication.path / LEADERBOARD_FILE)
        run.log_table(columns, rows, "per_class.json")
        metrics = headline(figures)
        run.log_metrics({f"ensemble/{name}": value for name, value in metrics.items()}, step=0)
        track_scores(figures, run)
        run.keep(publication.path)
        publication.metadata.update(
            **metrics,
            best_single_model=figures["ensemble"]["best_single"],
            table=markdown_table(figures),
            mlflow_run_id=run.run_id,
            mlflow_url=run.url,
        )
    return publication.result


def track_scores(figures: Mapping[str, Any], run: TrackedRun) -> None:
    """The MAP of each model's published ranking, and the ensemble beside the trainings' models, by data set."""
    maps = {"holdout": {row["key"]: row["map_with_tta"] for row in figures["models"]}}
    ensemble = {"holdout/map_at_100000": figures["ensemble"]["map"]}
    if figures["simulated"]:
        maps["test"] = {**figures["simulated"]["test"]["maps"]}
        ensemble["test/map_at_100000"] = maps["test"].pop("ensemble")
    models = {f"{data}/{key}": value for data, found in maps.items() for key, value in found.items()}
    run.log_metrics(models | ensemble, step=0)  # the ensemble's as points, too: so they have one time on every server
    run.log_checkpoint("ensemble", 0, ensemble)


def page_facts(recipe: Recipe, store: ArtifactStore, inputs: Inputs) -> dict[str, str]:
    """When and by what a page was made, and from which files."""
    tags = code_tags()
    commit = tags.get("mlflow.source.git.commit")
    return {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "code": f"yt8m-assets {tags['package_version']}" + (f", commit {commit}" if commit else ""),
        "recipe": f"{recipe.name}, fingerprint {inputs.fingerprint[:16]}",
        **{asset.replace("_", " "): store.uri(inputs.parent(asset)) for asset in ("submission", "ensemble_weights")},
    }


def run_links(inputs: Inputs, run: TrackedRun) -> dict[str, str]:
    """The MLflow pages of the models' trainings, the search, the submission and this report, where they are known."""
    urls = {f"run of {key}": manifest.metadata.get("mlflow_url") for key, manifest in inputs.manifests.items()}
    linked = ("finetuned_model", "ensemble_weights", "submission")
    models = {name: url for name, url in urls.items() if any(part in name for part in linked)}
    return {name: str(url) for name, url in {**models, "run of this report": run.url}.items() if url}


def headline(figures: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that stand for the whole."""
    ensemble = figures["ensemble"]
    found = {
        "map_at_100000": ensemble["map"],
        "map_low": ensemble["interval"]["low"],
        "map_high": ensemble["interval"]["high"],
        "gain_over_best_single": ensemble["gain"]["value"],
    }
    if figures["simulated"]:
        for split in ("holdout", "test"):
            part = figures["simulated"][split]
            values = {"random_map": part["random"], "oracle_map": part["oracle"], "norm": part["norms"]["ensemble"]}
            found |= {f"{split}_{name}": value for name, value in values.items() if value is not None}
        found["test_map_at_100000"] = figures["simulated"]["test"]["maps"]["ensemble"]
    return found


def read_leaderboard(recipe: Recipe, store: ArtifactStore) -> dict[str, Any]:
    """The published figures. Raises MissingArtifactError without any, ParentMismatchError for outdated ones."""
    manifest = require_current(recipe, store, Node("leaderboard"))
    return json.loads((store.fetch(manifest, (LEADERBOARD_FILE,)) / LEADERBOARD_FILE).read_text(encoding="utf-8"))


def markdown_table(figures: Mapping[str, Any]) -> str:
    """The table as Markdown, for metadata and README."""
    from yt8m_assets.reports.page import table_columns, table_rows

    columns = table_columns(figures)
    return verbatim.markdown_table(columns, table_rows(figures), range(1, len(columns)))


def leaderboard_table(store: ArtifactStore, recipe: Recipe) -> "Table":
    """The published leaderboard for a terminal, with its remarks below. Errors as `read_leaderboard`."""
    return figures_table(read_leaderboard(recipe, store))


def figures_table(figures: Mapping[str, Any]) -> "Table":
    """The figures of a leaderboard as a table for a terminal, with the remarks below."""
    from rich.markup import escape
    from rich.table import Table

    from yt8m_assets.reports.page import remarks, table_columns, table_rows

    caption = escape("\n".join(remarks(figures)))
    table = Table(title=escape(f"Leaderboard of recipe {figures['recipe']}"), caption=caption)
    table.caption_justify = "left"
    for place, name in enumerate(table_columns(figures)):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    *models, ensemble = ([escape(cell) for cell in row] for row in table_rows(figures))
    for row in models:
        table.add_row(*row)
    table.add_section()
    table.add_row(*ensemble, style="bold")
    return table


def write_own_report(
    recipe: Recipe, store: ArtifactStore, folder: Path, ratings: "tuple[str, Ratings] | None", variants: bool = False
) -> Path:
    """Write the page into a folder, with a column for ratings from outside (their name, and they), and with rows for
    the models' variants; returns its path.

    The published leaderboard stays as it is. Errors as `read_leaderboard` and `given_figures`.
    """
    from yt8m_assets.reports.figures import given_figures
    from yt8m_assets.reports.page import write_page
    from yt8m_assets.reports.plots import draw_leaderboard
    from yt8m_assets.reports.variants import with_variant_rows

    figures = read_leaderboard(recipe, store)
    inputs = resolve_inputs(recipe, store, Node("leaderboard"))
    if ratings is not None:
        figures["given"] = given_figures(recipe, store, ratings[1], ratings[0])
    if variants:
        figures = with_variant_rows(recipe, store, inputs, figures)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEADERBOARD_FILE).write_text(json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n")
    write_page(figures, draw_leaderboard(figures, folder), folder / PAGE_FILE, page_facts(recipe, store, inputs))
    return folder / PAGE_FILE
