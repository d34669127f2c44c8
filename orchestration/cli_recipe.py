"""The command that begins a recipe of one's own."""

import argparse
import glob
import json
import os
from pathlib import Path
from typing import Any

from orchestration.session import say
from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import KNOWN_RECIPES, load_recipe

LAYOUTS = (
    "frame/{split}/{split}*.tfrecord",
    "{split}*.tfrecord",
    "{split}/{split}*.tfrecord",
    "frame/{split}*.tfrecord",
)
"""Where shards may lie below 2/ and 3/: as in the public buckets, or flat, as they are often downloaded."""
NUM_CLASSES = 3862
"""Of the data set's vocabulary; a vocabulary of one's own is counted."""


def command_init_recipe(arguments: argparse.Namespace) -> int:
    """Write a JSON recipe for data of one's own, with every place where a path belongs."""
    path, base = arguments.file, arguments.recipe or "demo"
    refuse_unwritable(path)
    keys = list(load_recipe(base).model_keys)
    folder = arguments.data if "://" in arguments.data else os.path.abspath(os.path.expanduser(arguments.data))
    data = describe_data(folder.rstrip("/"))
    write_recipe(path, base, {"data": data, "model_keys": keys, "models": {}})
    missing = [] if "://" in folder else [name for name in named_paths(data) if not glob.glob(name)]
    say(*(f"nothing there yet: {name}" for name in missing))
    say(f"{path}: {'put your paths in' if missing else 'look at the paths'}, take out models you do not want, then")
    say(f"yt8m inspect '{folder}' --recipe {path}    (what the shards hold)", f"yt8m materialize --recipe {path}")
    return 0


def refuse_unwritable(path: Path) -> None:
    """Raise ConfigError where a recipe of that name could not be loaded, or is there."""
    if path.suffix != ".json":
        raise ConfigError(f"{path}: give a name that ends in .json")
    if path.exists():
        raise ConfigError(f"{path}: exists; give another name, or delete it")


def write_recipe(path: Path, base: str, values: dict[str, Any]) -> None:
    """Write a JSON recipe that builds on another one, by its name or its file. Raises ConfigError."""
    refuse_unwritable(path)
    recipe = {"base": base if base in KNOWN_RECIPES or "://" in base else os.path.relpath(base, path.parent), **values}
    try:
        path.write_text(json.dumps(recipe, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def describe_data(folder: str) -> dict[str, Any]:
    """The field `data` of a recipe for a folder or gs:// URI: its patterns as shards are found, its classes counted."""
    from yt8m_assets.data.records.vocabulary import load_vocabulary

    vocabulary = f"{folder}/vocabulary.csv"
    return {
        "simulation": None,
        "pretraining": [find_pattern(f"{folder}/2", "train"), find_pattern(f"{folder}/2", "validate")],
        "segments": [find_pattern(f"{folder}/3", "validate")],
        "test": [find_pattern(f"{folder}/3", "test")],
        "segment_classes_uri": f"{folder}/segment_label_ids.csv",
        "vocabulary_uri": vocabulary,
        "num_classes": max(load_vocabulary(vocabulary)) + 1 if Path(vocabulary).is_file() else NUM_CLASSES,
        "holdout": {"rule": "seeded", "fraction": 0.3333},
    }


def find_pattern(release: str, split: str) -> str:
    """The pattern of a split's shards below a release: the first layout that matches any, else that of the buckets."""
    patterns = [f"{release}/{layout.format(split=split)}" for layout in LAYOUTS]
    return next((each for each in patterns if glob.glob(each)), patterns[0])


def named_paths(data: dict[str, Any]) -> list[str]:
    """Every path and pattern of the field `data`."""
    patterns = [name for field in ("pretraining", "segments", "test") for name in data[field]]
    return [*patterns, data["segment_classes_uri"], data["vocabulary_uri"]]
