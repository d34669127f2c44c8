"""Finding a recipe: by name, in a Python file, or as a JSON file that overrides fields of another one."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from yt8m_assets.data.records.framing import is_remote, read_whole
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes.overlay import apply_overrides, plain
from yt8m_assets.recipes.schema import ModelRecipe, Recipe

KNOWN_RECIPES = ("demo", "challenge", "demo_beyond", "beyond")
"""The recipes of this package, by name."""
MAX_FILE_SIZE = 2**20
"""Bytes a recipe file may have."""
PATH_FIELDS = ("pretraining", "segments", "test", "segment_classes_uri", "vocabulary_uri", "label_map_uri")
"""Fields of `data` that name files."""
MAX_DEPTH = 8
"""Recipe files that may build on one another."""


def load_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of a name (`demo`, `challenge`, `demo_beyond`, `beyond`) or of a file.

    A `.py` file defines `RECIPE` and is run as the code it is; it may import what lies beside it. A `.json` file is
    data, and may lie in a bucket:
    `{"base": "demo", "prediction": {"top_k": 100}, "models": {"bert_l2h12": {"finetuning": {"num_steps": 20}}}}`.
    In `models` a new key with a `"base"` is a further model. `model_keys` lists the models that the recipe has, those
    of the base where it is left out; `models` may be that list, too. Raises ConfigError naming the file, the field and
    what is known.
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
    if is_remote(name) and path.suffix == ".py":
        raise ConfigError(f"recipe {name!r}: only a .json recipe is read from a bucket: it is no code")
    try:
        size = _remote_size(name) if is_remote(name) else path.stat().st_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"recipe {name!r}: cannot read the file: {error}") from error
    if size > MAX_FILE_SIZE:
        raise ConfigError(f"recipe {name!r}: {size:,} bytes; a recipe file has at most {MAX_FILE_SIZE:,}")
    return _load_python(path) if path.suffix == ".py" else _load_json(name, depth)


def _remote_size(uri: str) -> int:
    from yt8m_assets.storage.remote import stat

    return stat(uri).size


def _load_python(path: Path) -> Recipe:
    spec = importlib.util.spec_from_file_location(f"yt8m_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"recipe {str(path)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"recipe {str(path)!r}: {error}") from error
    except Exception as error:
        raise ConfigError(f"recipe {str(path)!r}: {type(error).__name__}: {error}") from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe {str(path)!r}: define RECIPE = Recipe(...)")
    return recipe


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let a recipe import what lies beside it, and forget that afterwards, so that it is read anew next time."""
    name, before = str(folder.absolute()), set(sys.modules)
    sys.path.append(name)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(name)
        for added in set(sys.modules) - before:
            if str(getattr(sys.modules[added], "__file__", None) or "").startswith(f"{name}/"):
                del sys.modules[added]


def _load_json(name: str, depth: int) -> Recipe:
    try:
        values = json.loads(read_whole(name).decode(), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"recipe {name!r}: not JSON: {error}") from error
    except OSError as error:
        raise ConfigError(f"recipe {name!r}: cannot read the file: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("base"), str):
        raise ConfigError(f'recipe {name!r}: give an object with "base": the recipe it builds on')
    base_name = values.pop("base")
    base = _load(base_name if base_name in KNOWN_RECIPES else _beside(name, base_name), depth + 1)
    try:
        return _overridden(base, {"name": Path(name).stem, **_absolute_paths(values, name)})
    except ConfigError as error:
        raise ConfigError(f"recipe {name!r}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"recipe {name!r}: nested too deeply") from error


def _beside(name: str, other: str) -> str:
    """Where a recipe file, local or in a bucket, means another file to be: relative paths are of its own folder."""
    if is_remote(other) or os.path.isabs(other):
        return other
    folder = name.rpartition("/")[0] if is_remote(name) else os.path.dirname(name)
    return os.path.join(folder, other)


def _overridden(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe that a file's values make of the one it builds on."""
    if (models := values.pop("models", None)) is not None:
        recipe = _override_models(recipe, models)
    if (keys := values.pop("model_keys", None)) is not None:
        if not isinstance(keys, list):
            raise ConfigError(f"model_keys = {keys!r}: give the list of the models that the recipe has")
        recipe = recipe.with_models(tuple(str(key) for key in keys))
    return apply_overrides(recipe, values, "")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; the parser alone would keep the last of two fields of one name, without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _absolute_paths(values: dict[str, Any], file: str) -> dict[str, Any]:
    """The recipe's values with paths of data made absolute: they are meant from the file's own folder."""
    data = values.get("data")
    if not isinstance(data, dict):
        return values

    def absolute(path: Any) -> Any:
        if isinstance(path, list):
            return [absolute(each) for each in path]
        if not isinstance(path, str) or not path or "://" in path:
            return path
        found = _beside(file, path)
        return found if is_remote(found) else os.path.abspath(found)

    found = {name: absolute(value) if name in PATH_FIELDS else value for name, value in data.items()}
    return {**values, "data": found}


def _override_models(recipe: Recipe, models: Any) -> Recipe:
    if isinstance(models, list):
        return recipe.with_models(tuple(str(key) for key in models))
    if not isinstance(models, dict):
        raise ConfigError(f"models = {models!r}: give a list of keys, or an object of overrides by key")
    changed = {model.key: _override_model(model, models.get(model.key, {})) for model in recipe.models}
    for key, values in models.items():
        if key not in changed:
            changed[key] = further_model(recipe, key, values)
    return replace(recipe, models=tuple(changed.values()))


def further_model(recipe: Recipe, key: str, values: Any) -> ModelRecipe:
    """Another model of the recipe under a key of its own, with what `values` changes beside the `base` they name."""
    if not isinstance(values, dict) or "base" not in values:
        recipe.model(key)  # says which are known
    origin = recipe.model(str(values["base"]))
    own = {name: value for name, value in values.items() if name != "base"}
    return _override_model(replace(origin, key=key, title=key, architecture=origin.architecture), own)


def _override_model(model: ModelRecipe, values: dict[str, Any]) -> ModelRecipe:
    return apply_overrides(model, values, f"models.{model.key}")


_FLAT_BASE = "challenge"
"""A recipe whose models override nothing, so that what is laid over it is all there is."""


def flatten(recipe: Recipe) -> dict[str, Any]:
    """The recipe, wherever it came from, as a JSON file with every field, of which `load_recipe` makes the same one.

    Raises ConfigError where a field holds what JSON cannot say (a tuple in a model's `overrides`).
    """
    base = _load(_FLAT_BASE, depth=0)
    values = plain(recipe)
    models = {model["key"]: model for model in values.pop("models")}
    for key in set(models).difference(base.model_keys):
        models[key] = {"base": base.model_keys[0], **models[key]}
    values |= {"models": models, "model_keys": list(recipe.model_keys)}
    if _overridden(base, json.loads(json.dumps(values))) != recipe:
        raise ConfigError(f"recipe {recipe.name!r}: a model's overrides hold what JSON cannot say, such as a tuple")
    return {"base": _FLAT_BASE, **values}
