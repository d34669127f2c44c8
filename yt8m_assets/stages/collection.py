"""What lies in a store and no recipe in use has a place for: artifacts and checkpoints of models that were dropped.

Retention (`retention`) keeps some generations of every artifact, whatever recipe made it, so that going back costs
nothing. It never takes the last ones of a model that no recipe names any more: they are found here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from yt8m_assets.errors import PartitionBusyError
from yt8m_assets.recipes.schema import Recipe
from yt8m_assets.stages.variants import kept_variants
from yt8m_assets.storage.manifest import Manifest
from yt8m_assets.storage.retention import all_keys, superseded
from yt8m_assets.storage.store import ArtifactStore


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A generation that may go."""

    key: str
    """Name of the artifact in the store."""
    generation: int
    """Number of the generation."""
    size: int
    """Bytes of its files."""


def find_dropped(recipes: Sequence[Recipe], store: ArtifactStore) -> list[Dropped]:
    """What belongs to models that none of the recipes has, nor any variant that is kept of one of theirs, except what
    any artifact that stays was made from.

    So every submission stays, with all that it was made from. Raises CorruptArtifactError naming a manifest that cannot
    be read, because what it was made from is not known then.
    """
    models = {key for recipe in recipes for key in recipe.model_keys}
    models |= {key for key, variant in kept_variants(store).items() if variant.base in models}
    manifests = {
        (key, number): store.read_manifest(key, number) for key in all_keys(store) for number in store.numbers(key)
    }
    by_content: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for (key, number), manifest in manifests.items():
        by_content.setdefault((key, manifest.digest), []).append((key, number))
    pending = [mark for mark in manifests if "/" not in mark[0] or mark[0].split("/")[1] in models]
    kept = set(pending)
    while pending:
        for parent in manifests[pending.pop()].parents.items():
            found = [mark for mark in by_content.get(parent, ()) if mark not in kept]
            kept.update(found)
            pending += found
    gone = [manifest for mark, manifest in manifests.items() if mark not in kept]
    gone += [manifest for manifest in _checkpoints(store) if manifest.key.split("/")[2] not in models]
    found_ones = [Dropped(key=one.key, generation=one.generation, size=one.size) for one in gone]
    return sorted(found_ones, key=lambda one: (one.key, one.generation))


def find_superseded(store: ArtifactStore) -> list[Dropped]:
    """Generations that retention does not keep: a publication removes those of its own artifact, and no others.

    So they are there where fewer are kept than before, or where what was made from them has gone. Raises as
    `find_dropped`.
    """
    old = [(key, number) for key in all_keys(store) for number in superseded(store, key, store.numbers(key))]
    manifests = [store.read_manifest(key, number) for key, number in old]
    return [Dropped(key=one.key, generation=one.generation, size=one.size) for one in manifests]


def _checkpoints(store: ArtifactStore) -> list[Manifest]:
    """Every checkpoint of a half-trained model."""
    parts = [f"checkpoints/{name}" for name in store.backend.names("checkpoints")]
    folders = [f"{folder}/{model}" for folder in parts for model in store.backend.names(folder)]
    keys = [key for folder in folders for key in store.list_keys(folder)]
    return [store.read_manifest(key, number) for key in keys for number in store.numbers(key)]


def remove(dropped: Sequence[Dropped], store: ArtifactStore) -> list[Dropped]:
    """Remove generations; those that stay, because a run writes that artifact now."""
    busy = []
    for one in dropped:
        try:
            with store.backend.lock(one.key):
                store.drop(one.key, one.generation)
                if not store.numbers(one.key):
                    store.delete(one.key)
        except PartitionBusyError:
            busy.append(one)
    return busy
