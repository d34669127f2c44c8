"""What a study of a model's settings is told: its budget, and the space that it searches."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.loading import flatten
from yt8m_assets.recipes.overlay import apply_overrides
from yt8m_assets.recipes.schema import Recipe, check_key
from yt8m_assets.recipes.variants import SECTIONS, with_variant
from yt8m_assets.training.space import Space, read_space


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: trainings of one model with settings out of a space, one after another, as many as a budget allows."""

    steps: int
    """Optimiser steps of all trials together, at most; a trial is begun only where it fits whole."""
    name: str = "study"
    """Its trials are the variants NAME_00, NAME_01, ..."""
    space: Mapping[str, Any] = field(default_factory=dict)
    """Setting -> two numbers (a range), one value (fixed), or choices; empty: the learning rate and label smoothing."""
    seed: int = 0
    """Seed of what is tried."""
    num_initial: int = 5
    """Random trials before a Gaussian process proposes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", MappingProxyType(dict(self.space)))
        for name in ("steps", "num_initial"):
            if getattr(self, name) < 1:
                raise ConfigError(f"study.{name} = {getattr(self, name)}: must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"study.seed = {self.seed}: must not be negative")
        check_key(self.name, "study.name =")

    def space_of(self, recipe: Recipe, base: str) -> Space:
        """The space, for one model. Raises ConfigError naming a setting that it cannot have at an end of its range."""
        rate = recipe.model(base).finetuning.learning_rate
        usual = {"finetuning.learning_rate": [rate / 4, rate * 4], "finetuning.label_smoothing": [0.0, 0.2]}
        space = read_space(self.space or usual)
        for name in (*space.searched, *space.fixed):
            section, dot, rest = name.partition(".")
            if section not in SECTIONS or not (dot and rest):
                raise ConfigError(f"space: {name}: give SECTION.FIELD, the section one of {', '.join(SECTIONS)}")
        as_recipe(recipe, base, recipe.name, {})
        for point in ({**space.fixed, **end} for end in space.ends()):
            row = with_variant(recipe, base, f"{self.name}_00", nested(point)).models[-1]
            if row.finetuning.num_steps < 1:
                raise ConfigError("space: finetuning.num_steps = 0: a trial of no steps is not scored")
        return space


def nested(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`finetuning.learning_rate` and so on as the settings of a variant."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        section, _, rest = name.partition(".")
        found.setdefault(section, {})[rest] = value
    return found


def as_recipe(recipe: Recipe, base: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON recipe, whole in itself, in which the model has a variant's settings."""
    rows = tuple(
        apply_overrides(row, dict(settings), f"models.{base}") if row.key == base else row for row in recipe.models
    )
    return flatten(replace(recipe, name=name, models=rows))
