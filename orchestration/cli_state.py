"""The commands about artifacts: why one is stale, what it is made from, whether it is sound, and whether it can go."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

from orchestration.session import open_session, say
from yt8m_assets.errors import ConfigError, CorruptArtifactError
from yt8m_assets.partitions import every_node, partition_key
from yt8m_assets.progress import Progress, default_progress
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.explain import causes, explain
from yt8m_assets.stages.lineage import Lineage
from yt8m_assets.stages.nodes import ASSETS, Node, all_nodes, parents
from yt8m_assets.stages.variants import kept_variants
from yt8m_assets.storage import ArtifactStore
from yt8m_assets.storage.soundness import counted_files

KEPT = "--repair leaves it, for its artifact is sound; `yt8m materialize --until ASSET --force` makes both anew"


def named_nodes(recipe: Recipe, name: str) -> list[Node]:
    """The nodes of that key, or of that asset or model of it. Raises ConfigError naming the assets."""
    name = name.rstrip("/")
    found = [node for node in every_node(recipe) if name in (node.key, f"{node.asset}/{partition_key(node)}")]
    found = found or [node for node in all_nodes(recipe) if node.key.startswith(f"{name}/")]
    if not found:
        raise ConfigError(
            f"{name!r} is nothing of recipe {recipe.name!r}; known: {', '.join(ASSETS)}, with /MODEL or /MODEL|SHIFT"
        )
    return found


def command_explain(arguments: argparse.Namespace) -> int:
    """Say why something is not up to date; exit code 1 if anything asked about is not."""
    session = open_session(arguments)
    lineage = Lineage(session.recipe, session.store)
    if arguments.node is None:
        lines = list(dict.fromkeys(cause for node in all_nodes(session.recipe) for cause in causes(lineage, node)))
        say(*lines or [f"recipe {session.recipe.name}: everything is up to date"])
        return 1 if lines else 0
    asked = named_nodes(session.recipe, arguments.node)
    for node in asked:
        say(f"{node.key}: {lineage.state(node)}", *(f"  {reason}" for reason in explain(lineage, node)))
        say(*(f"  begins at {it}" for it in causes(lineage, node) if not it.startswith(f"{node.key}:")))
    return 1 if any(lineage.state(node) != "current" for node in asked) else 0


def command_lineage(arguments: argparse.Namespace) -> int:
    """Show what artifacts are made from, down to the shards: digest and folder of each; exit code 1 if one is stale."""
    session = open_session(arguments)
    lineage, seen = Lineage(session.recipe, session.store), set[Node]()
    for node in named_nodes(session.recipe, arguments.node):
        say(*chain(lineage, node, seen))
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
    """Read every file of what a recipe and its variants have made; exit code 1 if something is damaged and stays so."""
    from orchestration.driver import open_driver

    session, progress = open_session(arguments), default_progress()
    recipe, store = session.recipe, session.store
    damaged = find_damage(recipe, store, progress)
    say(*(f"{node.key} generation {generation}: {problem}" for node, generation, problem in damaged))
    for node, generation, problem in find_damage(recipe, store, progress, shown=True):
        if (node, generation, problem) not in damaged:  # as its manifest is
            say(f"{node.key} generation {generation}, only shown to people: {problem}; {KEPT}")
    if not damaged or not arguments.repair:
        say(f"{len(damaged)} damaged{'; --repair makes them again' if damaged else ''}")
        return 1 if damaged else 0
    for node, generation, _ in damaged:
        store.drop(node.key, generation)
    variants, due = kept_variants(store), dict.fromkeys(node for node, _, _ in damaged)
    own = [node for node in due if node.model is None or node.model in recipe.model_keys]
    for key in dict.fromkeys(str(node.model) for node in due if node not in own):
        say(f"to make it again: yt8m variant {variants[key].base} {variants[key].name}")
    num_made = 0
    if own:
        with open_driver(recipe, session.state, session.settings, progress) as driver:
            num_made = driver.make(own).num_made
    say(f"{len(damaged)} damaged removed, {num_made} made again")
    return 0


def find_damage(
    recipe: Recipe, store: ArtifactStore, progress: Progress, shown: bool = False
) -> list[tuple[Node, int, str]]:
    """(node, generation, what is wrong) of every kept generation of the artifacts of a recipe and its models' variants,
    each file read in full.

    `shown`: of the pictures and pages below report/, of which nothing is made, instead of the content.
    """
    damaged = []
    wanted = every_node(recipe)
    for key, variant in kept_variants(store).items():
        if key not in recipe.model_keys:
            wanted += [replace(node, model=key) for node in every_node(recipe) if node.model == variant.base]
    kept = [(node, number) for node in wanted for number in store.numbers(node.key)]
    with progress.task("verifying", len(kept), "artifacts") as task:
        for node, number in kept:
            try:
                manifest = store.read_manifest(node.key, number)
                counted = counted_files(manifest)
                names = tuple(set(manifest.files).difference(counted) if shown else counted)
                for name in names:  # a sound copy on this machine would hide what a bucket holds
                    store.backend.drop_copy(f"{manifest.key}/{manifest.folder}/{name}")
                store.fetch(manifest, names)
            except FileNotFoundError:
                pass  # purged in the meantime
            except CorruptArtifactError as error:
                damaged.append((node, number, str(error)))
            task.advance()
    return damaged
