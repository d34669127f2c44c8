"""Finding a recipe: by name, in a Python file, or as a JSON file that overrides fields of another one."""

import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.overlay import apply_overrides
from yt8m_assets.recipes.schema import ModelRecipe, Recipe

KNOWN_RECIPES = ("demo", "challenge")
"""The recipes of this package, by name."""
MAX_FILE_SIZE = 2**20
"""Bytes a recipe file may have."""
MAX_DEPTH = 8
"""Recipe files that may build on one another."""


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of a name (`demo`, `challenge`) or of a file.

    A `.py` file defines `RECIPE` and is run as the code it is; a `.json` file is data only: `{"base": "demo",
    "prediction": {"top_k": 100}, "models": {"bert_l2h12": {"finetuning": {"num_steps": 20}}}}`, where `models` may also
    be a list of keys to keep. Raises ConfigError naming the file, the field and what is known.
    """
    return _load(str(name_or_path), depth=0)


def _load(name: str, depth: int) -> Recipe:
    if depth > MAX_DEPTH:
        raise ConfigError(f"recipe {name!r}: more than {MAX_DEPTH} recipe files build on one another")
    if name in KNOWN_RECIPES:
        return importlib.import_module(f"yt8m_assets.recipes.{name}").RECIPE
    path = Path(name)
    if path.suffix not in (".py", ".json"):
        known = ", ".join(KNOWN_RECIPES)
        raise ConfigError(f"unknown recipe {name!r}: choose {known}, or give the path of a .py or .json file")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe {name!r}: cannot read the file: {error}") from error
    if size > MAX_FILE_SIZE:
        raise ConfigError(f"recipe {name!r}: {size:,} bytes; a recipe file has at most {MAX_FILE_SIZE:,}")
    return _load_python(path) if path.suffix == ".py" else _load_json(path, depth)


def _load_python(path: Path) -> Recipe:
    spec = importlib.util.spec_from_file_location(f"yt8m_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"recipe {str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"recipe {str(path)!r}: {error}") from error
    except Exception as error:
        raise ConfigError(f"recipe {str(path)!r}: {type(error).__name__}: {error}") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe {str(path)!r}: define RECIPE = Recipe(...)")
    return recipe


def _load_json(path: Path, depth: int) -> Recipe:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"recipe {str(path)!r}: not JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"recipe {str(path)!r}: cannot read the file: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("base"), str):
        raise ConfigError(f'recipe {str(path)!r}: give an object with "base": the recipe it builds on')
    base_name = values.pop("base")
    if base_name not in KNOWN_RECIPES:
        base_name = str(path.parent / base_name)
    base = _load(base_name, depth + 1)
    values.setdefault("name", path.stem)
    try:
        models = values.pop("models", None)
        recipe = base if models is None else _override_models(base, models)
        return apply_overrides(recipe, values, "")
    except ConfigError as error:
        raise ConfigError(f"recipe {str(path)!r}: {error}") from error


def _override_models(recipe: Recipe, models: Any) -> Recipe:
    if isinstance(models, list):
        return recipe.with_models(tuple(str(key) for key in models))
    if not isinstance(models, dict):
        raise ConfigError(f"models = {models!r}: give a list of keys, or an object of overrides by key")
    for key in models:
        recipe.model(key)
    return replace(recipe, models=tuple(_override_model(model, models.get(model.key, {})) for model in recipe.models))


def _override_model(model: ModelRecipe, values: dict[str, Any]) -> ModelRecipe:
    return apply_overrides(model, values, f"models.{model.key}")
