"""Why a node is not up to date, in words: the same text in `yt8m explain`, status, checks and refusals."""

from collections.abc import Mapping
from typing import Any, Protocol

from yt8m_assets.errors import DataError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.nodes import ASSETS, Node, parents
from yt8m_assets.storage import ArtifactStore, Manifest
from yt8m_assets.storage.manifest import differences
from yt8m_assets.storage.soundness import damage

_LONGEST = 60
"""Characters of a value that are shown."""


class Answers(Protocol):
    """What is known of the nodes of a recipe in a store: see `Lineage`, which answers it."""

    recipe: Recipe
    store: ArtifactStore

    def current(self, node: Node) -> Manifest | None: ...

    def state(self, node: Node) -> str: ...

    def config(self, node: Node) -> dict[str, Any]: ...


def explain(lineage: Answers, node: Node) -> list[str]:
    """The reasons why a node is not up to date, nearest first; empty where it is."""
    if lineage.current(node) is not None:
        return []
    kept = list(lineage.store.generations(node.key))
    above = [
        f"{parent.key} is {found}"
        for parent in parents(lineage.recipe, node)
        if (found := lineage.state(parent)) != "current"
    ]
    if not kept:
        damaged = ["its manifest is damaged"] if lineage.store.numbers(node.key) else ["not materialised"]
        return [*damaged, *above]
    try:
        config = lineage.config(node)
    except DataError as error:
        return [str(error), *above]
    reasons = min((_differences(lineage, node, config, manifest) for manifest in kept), key=len)
    return [*reasons, *above] or [text for manifest in kept for text in damage(lineage.store, manifest)]


def causes(lineage: Answers, node: Node) -> list[str]:
    """Where the trouble of a node begins: `key: reasons` of it or of what it comes from, the farthest only."""
    found: dict[str, str] = {}
    pending, seen = [node], {node}
    while pending:
        child = pending.pop()
        above = [parent for parent in parents(lineage.recipe, child) if lineage.state(parent) != "current"]
        if not above and lineage.current(child) is None:
            found[child.key] = f"{child.key}: {', '.join(explain(lineage, child))}"
        pending += [parent for parent in above if parent not in seen]
        seen |= set(above)
    return [found[key] for key in sorted(found)]


def _differences(lineage: Answers, node: Node, config: Mapping[str, Any], made: Manifest) -> list[str]:
    """What differs between a generation and what would be made now, as far as the parents that are up to date go."""
    lines = changes(made.config, config)
    if made.code_version != node.code_version:
        lines.append(f"code version: {made.code_version} -> {node.code_version}")
    wanted = {parent.key: lineage.current(parent) for parent in parents(lineage.recipe, node)}
    for key, manifest in wanted.items():
        before = made.parents.get(key)
        if before is None:
            lines.append(f"it was not made from {key}")
        elif manifest is not None and manifest.digest != before:
            lines.append(f"{key} has other content: {before[:12]} -> {manifest.digest[:12]}")
    lines += [f"it was made from {key}, which it no longer is" for key in made.parents if key not in wanted]
    lacking = [name for name in ASSETS[node.asset].holds if name not in made.files]
    lines += [f"it holds no {name}: made again, it keeps its content" for name in lacking]
    return lines


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `field: old -> new` for every differing field, nested ones with dots."""
    return [f"{name}: {_short(before)} -> {_short(now)}" for name, before, now in differences(old, new)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
