"""`yt8m gc`: what dropped models have left behind, and its removal when asked for."""

import argparse
import sys
from collections import Counter

from orchestration.cli_commands import open_store, prepare
from yt8m_assets.recipes import load_recipe
from yt8m_assets.stages.collection import find_dropped, remove


def command_gc(arguments: argparse.Namespace) -> int:
    """Show what could go, or remove it; exit code 1 if something stays because a run writes it."""
    recipe, _, settings = prepare(arguments)
    store = open_store(settings)
    recipes = [recipe, *(load_recipe(name) for name in arguments.keep)]
    dropped = find_dropped(recipes, store)
    sizes: Counter[str] = Counter()
    for one in dropped:
        sizes[one.key] += one.size
    numbers = Counter(one.key for one in dropped)
    for key, size in sizes.items():
        sys.stdout.write(f"{key}: {numbers[key]} generation{'s' * (numbers[key] > 1)}, {megabytes(size)}\n")
    names = ", ".join(one.name for one in recipes)
    if not dropped:
        sys.stdout.write(f"nothing in {store.root_uri} is of models that {names} dropped\n")
        return 0
    total = megabytes(sum(sizes.values()))
    if not arguments.delete:
        sys.stdout.write(
            f"{total} of models that are not in {names}; --delete removes it. Recipes that share this store: --keep\n"
        )
        return 0
    busy = remove(dropped, store)
    sys.stdout.write("".join(f"{one.key}: a run is writing it; stays\n" for one in busy))
    sys.stdout.write(f"{megabytes(sum(sizes.values()) - sum(one.size for one in busy))} removed\n")
    return 1 if busy else 0


def megabytes(size: int) -> str:
    """Bytes in decimal megabytes."""
    return f"{size / 1e6:,.1f} MB"
