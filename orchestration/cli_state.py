"""The commands about the state of artifacts: why something is stale, and whether what is published is sound."""

import argparse
import sys
from collections.abc import Iterator

from orchestration.cli_commands import open_store, prepare
from yt8m_assets.errors import ConfigError, CorruptArtifactError
from yt8m_assets.partitions import partition_key
from yt8m_assets.progress import Progress, default_progress
from yt8m_assets.recipes.schema import SHIFTS, Recipe
from yt8m_assets.stages.explain import causes, explain
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import ASSETS, Node, all_nodes, parents
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.soundness import content_files

KEPT = "--repair leaves it, for its artifact is sound; `yt8m materialize --until ASSET --force` makes both anew"


def known_nodes(recipe: Recipe) -> list[Node]:
    """Every node of a recipe, the cells of shifts that no ranking fuses included."""
    grids = [name for name, asset in ASSETS.items() if "shift" in asset.axes]
    cells = [Node(asset, key, shift) for asset in grids for key in recipe.model_keys for shift in SHIFTS]
    return list(dict.fromkeys([*all_nodes(recipe), *cells]))


def named_nodes(recipe: Recipe, name: str) -> list[Node]:
    """The nodes of that key, or of that asset or model of it. Raises ConfigError naming the assets."""
    name = name.rstrip("/")
    found = [node for node in known_nodes(recipe) if name in (node.key, f"{node.asset}/{partition_key(node)}")]
    found = found or [node for node in all_nodes(recipe) if node.key.startswith(f"{name}/")]
    if not found:
        raise ConfigError(
            f"{name!r} is nothing of recipe {recipe.name!r}; known: {', '.join(ASSETS)}, with /MODEL or /MODEL|SHIFT"
        )
    return found


def command_explain(arguments: argparse.Namespace) -> int:
    """Say why something is not up to date; exit code 1 if anything asked about is not."""
    recipe, _, settings = prepare(arguments)
    lineage = Lineage(recipe, open_store(settings))
    if arguments.node is None:
        lines = list(dict.fromkeys(cause for node in all_nodes(recipe) for cause in causes(lineage, node)))
        sys.stdout.write("".join(f"{line}\n" for line in lines) or f"recipe {recipe.name}: everything is up to date\n")
        return 1 if lines else 0
    asked = named_nodes(recipe, arguments.node)
    for node in asked:
        found = lineage.state(node)
        sys.stdout.write(f"{node.key}: {found}\n" + "".join(f"  {reason}\n" for reason in explain(lineage, node)))
        begins = [cause for cause in causes(lineage, node) if not cause.startswith(f"{node.key}:")]
        sys.stdout.write("".join(f"  begins at {cause}\n" for cause in begins))
    return 1 if any(lineage.state(node) != "current" for node in asked) else 0


def command_lineage(arguments: argparse.Namespace) -> int:
    """Show what artifacts are made from, down to the shards: digest and folder of each; exit code 1 if one is stale."""
    recipe, _, settings = prepare(arguments)
    lineage = Lineage(recipe, open_store(settings))
    seen: set[Node] = set()
    for node in named_nodes(recipe, arguments.node):
        sys.stdout.writelines(f"{line}\n" for line in chain(lineage, node, seen))
    return 1 if any(lineage.state(node) != "current" for node in seen) else 0


def chain(lineage: Lineage, node: Node, seen: set[Node], depth: int = 0) -> Iterator[str]:
    """A line for a node, and below it, further in, those of its parents; what was shown above is only named."""
    manifest = lineage.current(node)
    where = f"{manifest.digest[:16]}  {lineage.store.uri(manifest)}" if manifest else lineage.state(node)
    yield f"{'  ' * depth}{node.key}  {'as above' if node in seen else where}"
    if node not in seen:
        seen.add(node)
        for parent in parents(lineage.recipe, node):
            yield from chain(lineage, parent, seen, depth + 1)


def command_verify(arguments: argparse.Namespace) -> int:
    """Read every file of a recipe's artifacts; exit code 1 if something is damaged and stays so."""
    recipe, state_, settings = prepare(arguments)
    store, progress = open_store(settings), default_progress()
    damaged = find_damage(recipe, store, progress)
    for node, generation, problem in damaged:
        sys.stdout.write(f"{node.key} generation {generation}: {problem}\n")
    for node, generation, problem in find_damage(recipe, store, progress, shown=True):
        if (node, generation, problem) in damaged:
            continue  # its manifest is
        sys.stdout.write(f"{node.key} generation {generation}, only shown to people: {problem}; {KEPT}\n")
    if not damaged or not arguments.repair:
        sys.stdout.write(f"{len(damaged)} damaged{'; --repair makes them again' if damaged else ''}\n")
        return 1 if damaged else 0
    for node, generation, _ in damaged:
        store.drop(node.key, generation)
    from orchestration.driver import open_driver

    with open_driver(recipe, state_, settings, progress) as driver:
        outcome = driver.make(list(dict.fromkeys(node for node, _, _ in damaged)))
    sys.stdout.write(f"{len(damaged)} damaged removed, {outcome.num_made} made again\n")
    return 0


def find_damage(
    recipe: Recipe, store: ArtifactStore, progress: Progress, shown: bool = False
) -> list[tuple[Node, int, str]]:
    """(node, generation, what is wrong) of every kept generation of a recipe's artifacts, each file read in full.

    `shown`: of the pictures and pages below report/, of which nothing is made, instead of the content.
    """
    damaged = []
    kept = [(node, number) for node in known_nodes(recipe) for number in store.numbers(node.key)]
    with progress.task("verifying", len(kept), "artifacts") as task:
        for node, number in kept:
            try:
                manifest = store.read_manifest(node.key, number)
                reported = tuple(set(manifest.files).difference(content_files(manifest)))
                store.fetch(manifest, reported if shown else None)
            except FileNotFoundError:
                pass  # purged in the meantime
            except CorruptArtifactError as error:
                damaged.append((node, number, str(error)))
            task.advance()
    return damaged
