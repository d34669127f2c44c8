"""The commands that work on the graph: demo, materialize, predict, ablate, status."""

import argparse
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import default_progress, format_seconds
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.storage import ArtifactStore

if TYPE_CHECKING:
    from rich.console import Console

    from orchestration.driver import Outcome

MIN_WIDTH = 130
"""Columns of the widest table."""


def prepare(arguments: argparse.Namespace) -> tuple[Recipe, State, Settings]:
    """State, settings and recipe of a command."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("dagster", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read by MLflow when it is imported
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    state = prepare_state(arguments.state)
    settings = Settings.from_environment(state)
    return load_recipe(arguments.recipe or settings.recipe), state, settings


def make_console() -> "Console":
    """A console wide enough for the tables: a narrow terminal wraps their lines, which beats cutting the numbers."""
    from rich.console import Console

    return Console(width=max(Console().width, MIN_WIDTH), highlight=False)


def open_store(settings: Settings) -> ArtifactStore:
    """The artifact store of the settings."""
    return ArtifactStore(settings.storage_uri, settings.cache_path, settings.keep_generations)


def command_materialize(arguments: argparse.Namespace) -> int:
    """Bring the graph up to date."""
    from orchestration.driver import open_driver

    recipe, state, settings = prepare(arguments)
    progress = default_progress()
    started = time.monotonic()
    with open_driver(recipe, state, settings, progress) as driver:
        options = {
            "allow_fallback": arguments.allow_fallback,
            "start_afresh": arguments.start_afresh,
            "force": arguments.force,
        }
        outcome = driver.materialize(models=arguments.models, until=arguments.until, **options)
    elapsed = format_seconds(time.monotonic() - started)
    progress.log(f"recipe {recipe.name}: {counts(outcome)}, in {elapsed}")
    if arguments.models:
        progress.log(where_it_stopped(recipe, arguments))
    elif arguments.until in (None, "leaderboard"):
        show_result(recipe, open_store(settings))
    return 0


def counts(outcome: "Outcome") -> str:
    """What a pass made, found made before, and left alone, in words."""
    found = outcome.num_nodes - outcome.num_current - outcome.num_made
    again = f", {found} found, made before" if found else ""
    return f"{outcome.num_made} made{again}, {outcome.num_current} were up to date"


def where_it_stopped(recipe: Recipe, arguments: argparse.Namespace) -> str:
    """What `--models` leaves out, and how to get an ensemble of those models."""
    last = arguments.until or "test_ranking"
    keys = json.dumps([key for key in recipe.model_keys if key in arguments.models])
    base = arguments.recipe or os.environ.get("YT8M_RECIPE") or "demo"
    return (
        f"stopped after {last}: weights, submission and leaderboard are made of all models of a recipe. "
        f'An ensemble of these needs a recipe with {{"base": "{base}", "model_keys": {keys}}}; nothing is made twice'
    )


def show_result(recipe: Recipe, store: ArtifactStore) -> None:
    """The leaderboard, and where submission and report lie."""
    from orchestration.status import summary

    console = make_console()
    for part in summary(recipe, store):
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))


def command_predict(arguments: argparse.Namespace) -> int:
    """Bring a rectangle of cells up to date."""
    from orchestration.driver import open_driver

    recipe, state, settings = prepare(arguments)
    shifts = arguments.shifts or SHIFTS
    unknown = sorted(set(shifts) - set(SHIFTS))
    if unknown:
        raise ConfigError(f"unknown shift {unknown[0]}; known: {', '.join(map(str, SHIFTS))}")
    splits = ("oof", "test") if arguments.split == "both" else (arguments.split,)
    progress = default_progress()
    with open_driver(recipe, state, settings, progress) as driver:
        assets = [f"{split}_predictions" for split in splits]
        outcome = driver.predict(assets, arguments.models or recipe.model_keys, shifts)
    progress.log(f"cells: {counts(outcome)}")
    return 0


def command_status(arguments: argparse.Namespace) -> int:
    """Show the state of the graph."""
    from orchestration.status import status_report

    recipe, _, settings = prepare(arguments)
    console = make_console()
    for part in status_report(recipe, open_store(settings)):
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))
    return 0


def command_ablate(arguments: argparse.Namespace) -> int:
    """Show what each switch of the recipe is worth on the out-of-fold rankings."""
    from yt8m_assets.reports.ablation import ablate
    from yt8m_assets.reports.ablation_table import ablation_table
    from yt8m_assets.tracking import NullTracking, Tracking

    recipe, _, settings = prepare(arguments)
    tracking: Tracking = NullTracking()
    if not arguments.no_tracking:
        from orchestration.resources import tracking_of

        tracking = tracking_of(settings)
    store, progress = open_store(settings), default_progress()
    figures = ablate(recipe, store, tracking=tracking, progress=progress, run_tags={})
    if arguments.json:
        sys.stdout.write(json.dumps(figures, indent=1, sort_keys=True, allow_nan=False) + "\n")
    else:
        make_console().print(ablation_table(figures))
    return 0


def command_demo(arguments: argparse.Namespace) -> int:
    """Run the demo's graph and show its table and its submission."""
    arguments.recipe = arguments.recipe or "demo"
    arguments.models, arguments.until, arguments.allow_fallback, arguments.force = (), None, False, False
    arguments.start_afresh = True  # the demo's training takes seconds, and nobody changed its recipe by mistake
    return command_materialize(arguments)
