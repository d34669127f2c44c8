"""The graph of artifacts: which node needs which, what determines its content, and whether it is up to date.

A node's fingerprint hashes the slice of the recipe that matters to it, the files the recipe names (by content, not by
place), the version of its code and the digests of its parents. An artifact is current when one of its kept generations
carries the fingerprint that would be computed now, its files are sound, and its parents are current themselves.
`Lineage` answers that, for every stage, check, sensor, plan and table.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from yt8m_assets.errors import DataError, MissingArtifactError, ParentMismatchError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.explain import causes
from yt8m_assets.stages.locating import data_slice, vocabulary_digest
from yt8m_assets.stages.nodes import ASSETS, Node, config_slice, parents
from yt8m_assets.storage import ArtifactStore, Manifest, canonical_json, sha256_text
from yt8m_assets.storage.soundness import damage

_LONGEST_REASONS = 400
"""Characters of reasons in one message: of another recipe, say, every field differs."""


def find_made(store: ArtifactStore, key: str, fingerprint: str) -> Manifest | None:
    """What a key that is no node of the graph, such as a study, holds of this fingerprint, sound."""
    return store.find(key, fingerprint)


@dataclass(frozen=True)
class Inputs:
    """What a node is made from now, all of it up to date."""

    node: Node
    """The node."""
    fingerprint: str
    """Hash of all that determines the content."""
    config: dict[str, Any]
    """The slice of the recipe, and the content of the files it names."""
    manifests: dict[str, Manifest]
    """The parents' manifests by key."""
    published: Manifest | None = None
    """The node's own manifest where it is up to date: then there is nothing to do."""

    @property
    def parents(self) -> dict[str, str]:
        """Key -> digest of each parent."""
        return {key: manifest.digest for key, manifest in self.manifests.items()}

    def parent(self, asset: str, model: str | None = None, shift: int | None = None) -> Manifest:
        """The manifest of one parent."""
        return self.manifests[Node(asset, model, shift).key]

    def find(self, store: ArtifactStore) -> Manifest | None:
        """The node's artifact that was made from exactly this, sound: the one answer to whether there is one."""
        return store.find(self.node.key, self.fingerprint, ASSETS[self.node.asset].holds)

    def publish_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ArtifactStore.publish`."""
        return {
            "fingerprint": self.fingerprint,
            "parents": self.parents,
            "config": self.config,
            "code_version": self.node.code_version,
        }


class Lineage:
    """The state of a recipe's nodes in a store; each is looked up once, until `forget`."""

    def __init__(self, recipe: Recipe, store: ArtifactStore) -> None:
        self.recipe, self.store = recipe, store.at_a_glance()
        self._current: dict[Node, Manifest | None] = {}
        self._configs: dict[Node, dict[str, Any]] = {}

    def forget(self) -> None:
        """Look again: something may have been published, or data changed."""
        self._current.clear()
        self._configs.clear()
        self.store = self.store.at_a_glance()

    def config(self, node: Node) -> dict[str, Any]:
        """What of recipe and named files determines the node. Raises DataError where such a file cannot be read."""
        if node not in self._configs:
            found = config_slice(self.recipe, node)
            files = ASSETS[node.asset].files
            if files == "shards":
                found |= data_slice(self.recipe, self.store, node.asset)
            elif files == "vocabulary" and self.recipe.data.vocabulary_uri:
                found["vocabulary"] = vocabulary_digest(self.recipe, self.store)
            self._configs[node] = found
        return self._configs[node]

    def current(self, node: Node) -> Manifest | None:
        """The node's manifest where it and all it comes from are up to date, else None."""
        if node not in self._current:
            try:
                self._current[node] = self.inputs(node).published
            except (MissingArtifactError, ParentMismatchError, DataError):
                self._current[node] = None
        return self._current[node]

    def state(self, node: Node) -> str:
        """`current`, `stale` (what it is made from has changed, or it is damaged) or `missing`."""
        if self.current(node) is not None:
            return "current"
        return "stale" if self.store.numbers(node.key) else "missing"

    def usable(self, node: Node) -> Manifest | None:
        """What may be built upon: what is up to date; of a store that takes what is outdated else the newest sound."""
        manifest = self.current(node)
        if manifest is None and self.store.takes_outdated:
            return next((kept for kept in self.store.generations(node.key) if not damage(self.store, kept)), None)
        return manifest

    def inputs(self, node: Node) -> Inputs:
        """What the node is made from now.

        Raises MissingArtifactError listing the parents that are not materialised, ParentMismatchError listing those
        that are not up to date with the differences in words, DataError where a file the recipe names cannot be read.
        """
        found = {parent: self.usable(parent) for parent in parents(self.recipe, node)}
        manifests = {parent.key: manifest for parent, manifest in found.items() if manifest is not None}
        if len(manifests) < len(found):
            self._refuse(node, [parent for parent, manifest in found.items() if manifest is None])
        config = self.config(node)
        content = {
            "node": asdict(node),
            "config": config,
            "code_version": node.code_version,
            "parents": {key: manifest.digest for key, manifest in manifests.items()},
        }
        fingerprint = sha256_text(canonical_json(content))
        inputs = Inputs(node=node, fingerprint=fingerprint, config=config, manifests=manifests)
        return replace(inputs, published=inputs.find(self.store))

    def _refuse(self, node: Node, parents_: list[Node]) -> None:
        missing = [parent.key for parent in parents_ if not self.store.numbers(parent.key)]
        if missing:
            raise MissingArtifactError(f"{node.key} needs {', '.join(missing)}: materialise first what is missing")
        reasons = dict.fromkeys(cause for parent in parents_ for cause in causes(self, parent))
        names = ", ".join(parent.key for parent in parents_)
        raise ParentMismatchError(
            f"{node.key} is made from {names}, not up to date ({'; '.join(reasons)}); materialise that first"
        )


def resolve_inputs(recipe: Recipe, store: ArtifactStore, node: Node) -> Inputs:
    """What a node is made from now; errors as `Lineage.inputs`."""
    return Lineage(recipe, store).inputs(node)


def current_manifest(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest | None:
    """The node's manifest if it is up to date with recipe, code, data and parents, else None; as `Lineage.usable`."""
    return Lineage(recipe, store).usable(node)


def require_current(recipe: Recipe, store: ArtifactStore, node: Node) -> Manifest:
    """The node's manifest. Raises MissingArtifactError where there is none, ParentMismatchError where it is stale."""
    lineage = Lineage(recipe, store)
    manifest = lineage.usable(node)
    if manifest is not None:
        return manifest
    if not store.numbers(node.key):
        raise MissingArtifactError(
            f"{node.key} has not been materialised (looked in {store.root_uri}); materialise it first"
        )
    reasons = "; ".join(causes(lineage, node))
    if len(reasons) > _LONGEST_REASONS:
        reasons = f"{reasons[:_LONGEST_REASONS]}..., `yt8m explain {node.key}` says all"
    raise ParentMismatchError(f"{node.key} is not up to date ({reasons}); materialise it first")
