"""The commands that work on the graph: demo, materialize, predict, ablate, status, doctor."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestration.session import Session, open_session, say, show
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import default_progress, format_seconds
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import SHIFTS, Recipe

if TYPE_CHECKING:
    from orchestration.driver import Outcome


def command_demo(arguments: argparse.Namespace) -> int:
    """Run the demo's graph and show its table and its submission."""
    arguments.recipe = arguments.recipe or "demo"
    arguments.models, arguments.until = (), None
    arguments.allow_fallback = arguments.start_afresh = arguments.force = False
    return command_materialize(arguments)


def command_materialize(arguments: argparse.Namespace) -> int:
    """Bring the graph up to date."""
    from orchestration.driver import open_driver
    from orchestration.status import summary

    session, progress, started = open_session(arguments), default_progress(), time.monotonic()
    options = ("models", "until", "allow_fallback", "start_afresh", "force")
    demo = {"afresh_if_needed": arguments.command == "demo"}  # its training takes seconds
    with open_driver(session.recipe, session.state, session.settings, progress) as driver:
        outcome = driver.materialize(**{name: getattr(arguments, name) for name in options}, **demo)
    elapsed = format_seconds(time.monotonic() - started)
    progress.log(f"recipe {session.recipe.name}: {counts(outcome)}, in {elapsed}")
    if arguments.models:
        progress.log(where_it_stopped(session, arguments))
    elif arguments.until in (None, "leaderboard"):
        show(summary(session.recipe, session.store))
    return 0


def counts(outcome: "Outcome") -> str:
    """What a pass made, found made before, and left alone, in words."""
    again = f", {outcome.num_found} found, made before" if outcome.num_found else ""
    return f"{outcome.num_made} made{again}, {outcome.num_current} were up to date"


def where_it_stopped(session: Session, arguments: argparse.Namespace) -> str:
    """What `--models` leaves out, and how to get an ensemble of those models."""
    from yt8m_assets.stages.variants import kept_variants

    last, recipe = arguments.until or "test_ranking", load_recipe(arguments.recipe or session.settings.recipe)
    keys = [key for key in session.recipe.model_keys if key in arguments.models]
    values: dict[str, Any] = {"base": arguments.recipe or os.environ.get("YT8M_RECIPE") or "demo"}
    if variants := set(keys).difference(recipe.model_keys):
        kept = kept_variants(session.store)
        values["models"] = {key: kept[key].as_model(recipe) for key in keys if key in variants}
    else:
        values["model_keys"] = keys
    return (
        f"stopped after {last}: weights, submission and leaderboard are made of all models of a recipe. "
        f"An ensemble of these needs a recipe with {json.dumps(values)}; nothing is made twice"
    )


def command_predict(arguments: argparse.Namespace) -> int:
    """Bring a rectangle of cells up to date."""
    from orchestration.driver import open_driver

    session, progress = open_session(arguments), default_progress()
    assets, models, shifts = rectangle(session.recipe, arguments)
    with open_driver(session.recipe, session.state, session.settings, progress) as driver:
        outcome = driver.predict(assets, models, shifts)
    progress.log(f"cells: {counts(outcome)}")
    return 0


def rectangle(recipe: Recipe, arguments: argparse.Namespace) -> tuple[list[str], Sequence[str], Sequence[int]]:
    """Assets, models and shifts of the cells that a command line names. Raises ConfigError naming what is unknown."""
    shifts = arguments.shifts or SHIFTS
    unknown = sorted(set(shifts) - set(SHIFTS))
    if unknown:
        raise ConfigError(f"unknown shift {unknown[0]}; known: {', '.join(map(str, SHIFTS))}")
    models = arguments.models or recipe.model_keys
    for key in models:
        recipe.model(key)
    splits = ("oof", "test") if arguments.split == "both" else (arguments.split,)
    return [f"{split}_predictions" for split in splits], models, shifts


def command_status(arguments: argparse.Namespace) -> int:
    """Show the state of the graph."""
    from orchestration.status import status_report

    session = open_session(arguments)
    show(status_report(session.recipe, session.store))
    return 0


def command_ablate(arguments: argparse.Namespace) -> int:
    """Show what each switch of the recipe is worth on the out-of-fold rankings."""
    from yt8m_assets.reports.ablation import ablate
    from yt8m_assets.reports.ablation_table import ablation_table
    from yt8m_assets.tracking import NullTracking

    session = open_session(arguments)
    if arguments.html and arguments.html.is_dir():
        raise ConfigError(f"{arguments.html}: is a folder; name a file, such as {arguments.html / 'ablation.html'}")
    tracking = NullTracking() if arguments.no_tracking else session.settings.open_tracking()
    figures = ablate(session.recipe, session.store, tracking=tracking, progress=default_progress(), run_tags={})
    if arguments.html:
        from yt8m_assets.reports.ablation_page import write_ablation_page
        from yt8m_assets.storage import atomic_write

        with atomic_write(arguments.html) as temporary:
            write_ablation_page(figures, temporary)
    if arguments.json:
        say(json.dumps(figures, indent=1, sort_keys=True, allow_nan=False))
    else:
        show([ablation_table(figures)])
    return 0


def command_doctor(arguments: argparse.Namespace) -> int:
    """Examine this machine; 0 where all is well, 1 where anything fails."""
    import dagster as dg

    from orchestration.doctor import examine, gpu_is_required

    session = open_session(arguments)
    tracking, gpu = session.settings.open_tracking(), arguments.gpu or gpu_is_required()
    with dg.DagsterInstance.get() as instance:
        findings = examine(session.recipe, session.store, tracking, instance, gpu)
    say(*findings)
    return 0 if all(finding.good for finding in findings) else 1
