"""What a command of the command line works on, and how it speaks to the terminal."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestration.settings import Settings
from orchestration.state import State, prepare_state
from yt8m_assets.recipes import load_recipe
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.storage import ArtifactStore

MIN_WIDTH = 130
"""Columns of the widest table."""


@dataclass(frozen=True)
class Session:
    """A recipe over a prepared state."""

    recipe: Recipe
    state: State
    settings: Settings

    @cached_property
    def store(self) -> ArtifactStore:
        """The artifact store of the settings."""
        return self.settings.open_store()


def open_session(arguments: argparse.Namespace) -> Session:
    """Prepare the state and load the recipe that a command line names; libraries that chatter are silenced."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("dagster", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read by MLflow when it is imported; where it is already:
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    state = prepare_state(arguments.state)
    settings = Settings.from_environment(state)
    recipe = load_recipe(arguments.recipe or settings.recipe)
    if any(key not in recipe.model_keys for key in getattr(arguments, "models", ())):
        from yt8m_assets.stages.variants import with_kept

        recipe = with_kept(recipe, settings.open_store(), arguments.models)
    return Session(recipe, state, settings)


def say(*lines: object) -> None:
    """Write lines to stdout, as they are."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def show(parts: Iterable[Any]) -> None:
    """Tables for people, and lines as they are. A narrow terminal wraps a table, which beats cutting its numbers."""
    from rich.console import Console

    console = Console(width=max(Console().width, MIN_WIDTH), highlight=False)
    for part in parts:
        say(part) if isinstance(part, str) else console.print(part)
