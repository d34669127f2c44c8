"""The command that begins a recipe of one's own."""

import argparse
import json
import sys

from yt8m_assets.errors import ConfigError
from yt8m_assets.recipes import load_recipe


def command_init_recipe(arguments: argparse.Namespace) -> int:
    """Write a JSON recipe for data of one's own, with every place where a path belongs."""
    path, base = arguments.file, arguments.recipe or "demo"
    if path.suffix != ".json":
        raise ConfigError(f"{path}: give a name that ends in .json")
    if path.exists():
        raise ConfigError(f"{path}: exists; give another name, or delete it")
    folder = arguments.data.rstrip("/")
    recipe = {
        "base": base,
        "data": {
            "simulation": None,
            "pretraining": [f"{folder}/2/train*.tfrecord", f"{folder}/2/validate*.tfrecord"],
            "segments": [f"{folder}/3/validate*.tfrecord"],
            "test": [f"{folder}/3/test*.tfrecord"],
            "segment_classes_uri": f"{folder}/segment_label_ids.csv",
            "vocabulary_uri": f"{folder}/vocabulary.csv",
            "num_classes": 3862,
            "holdout": {"rule": "seeded", "fraction": 0.3333},
        },
        "model_keys": list(load_recipe(base).model_keys),
        "models": {},
    }
    path.write_text(json.dumps(recipe, indent=1) + "\n")
    sys.stdout.write(
        f"{path}: put your paths in, take out models you do not want, then\n"
        f"yt8m inspect '{folder}' --recipe {path}    (what the shards hold)\n"
        f"yt8m materialize --recipe {path}\n"
    )
    return 0
