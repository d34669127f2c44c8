"""Which generations of an artifact may go when newer ones are published.

The newest `ArtifactStore.keep_generations` stay. Beyond them stay every submission, of each model the one with the best
hold-out MAP on each set of ratings, and whatever any artifact that is there was made from.
"""

import re
from collections.abc import Iterator, Sequence

from yt8m_assets.errors import CorruptArtifactError, LaterVersionError
from yt8m_assets.storage.backend import INDEXING_FOLDER, SUBMITTED_FOLDER, LocalBackend
from yt8m_assets.storage.generations import Generations
from yt8m_assets.storage.manifest import Manifest

SUBMISSION = "submission"
MODEL = "finetuned_model"
RATINGS = "holdout_ratings"
_NOT_ARTIFACTS = ("checkpoints", "simulated", INDEXING_FOLDER, SUBMITTED_FOLDER)
"""Folders of the root whose contents are made from artifacts, but are never a parent's reason to stay."""
_MAX_DEPTH = 3
"""Parts of the longest key: asset, model, shift."""


_FOLDER = re.compile(r"(\d{6})-[0-9a-f]{8}")
_ORPHAN_DISTANCE = 8
"""In a bucket, where no lock tells whether its writer lives, a folder without manifest goes when this far behind."""


def purge(store: Generations, key: str, scratch: bool) -> None:
    """Drop generations that are no longer kept, and folders of writers that died before their manifest.

    `scratch`: nothing is ever made from it, so only the generation before the newest stays.
    """
    numbers = store.numbers(key)
    try:
        gone = numbers[:-2] if scratch else superseded(store, key, numbers)
    except LaterVersionError:
        return  # what a later version made from which cannot be told
    for number in gone:
        store.drop(key, number)
    names = store.backend.names(key)
    folders = {found.group(0): int(found.group(1)) for name in names if (found := _FOLDER.fullmatch(name))}
    kept = store.numbers(key)
    if len(folders) <= len(kept):
        return
    manifests = [_read(store, key, number) for number in kept]
    if None in manifests:
        return  # whose folder that is cannot be told
    known = {manifest.folder for manifest in manifests if manifest is not None}
    distance = 0 if isinstance(store.backend, LocalBackend) else _ORPHAN_DISTANCE
    for name, number in folders.items():
        if name not in known and number + distance <= kept[-1]:
            store.backend.delete(f"{key}/{name}")


def superseded(store: Generations, key: str, numbers: Sequence[int]) -> list[int]:
    """The generations of `key` (numbers, rising) that nothing keeps. Reads the other manifests only where some are old.

    A generation whose manifest cannot be read is one of them.
    """
    old = list(numbers[: -store.keep_generations])
    if not old:
        return []
    manifests = {number: found for number in numbers if (found := _read(store, key, number)) is not None}
    if key == SUBMISSION:
        return _made_again(manifests, old)
    kept = set(manifests) - set(old)
    if key.startswith(f"{MODEL}/"):
        kept |= _best(manifests)
    candidates = [number for number in old if number not in kept]
    kept_digests = {manifests[number].digest for number in kept}
    if all(number not in manifests or manifests[number].digest in kept_digests for number in candidates):
        return candidates
    used = {digest for parents in _parents_of_all(store) if (digest := parents.get(key)) is not None}
    return [
        number
        for number in candidates
        if number not in manifests or manifests[number].digest in kept_digests or manifests[number].digest not in used
    ]


def _made_again(manifests: dict[int, Manifest], old: Sequence[int]) -> list[int]:
    """Those of the old generations that a later one repeats: made from the same, with the same content."""
    newest = {(manifest.fingerprint, manifest.digest): number for number, manifest in sorted(manifests.items())}
    return [n for n in old if n in manifests and newest[manifests[n].fingerprint, manifests[n].digest] != n]


def _best(manifests: dict[int, Manifest]) -> set[int]:
    """The generation of highest hold-out MAP on each set of ratings; MAPs on different ones cannot be compared."""
    best: dict[str | None, tuple[float, int]] = {}
    for number, manifest in manifests.items():
        quality, ratings = manifest.metadata.get("map"), manifest.parents.get(RATINGS)
        if isinstance(quality, int | float):
            best[ratings] = max(best.get(ratings, (float("-inf"), 0)), (float(quality), number))
    return {number for _, number in best.values()}


def _read(store: Generations, key: str, number: int) -> Manifest | None:
    try:
        return store.read_manifest(key, number)
    except (FileNotFoundError, CorruptArtifactError):
        return None


def all_keys(store: Generations) -> Iterator[str]:
    """Every artifact of the graph in the store, whatever recipe made it."""
    pending = [name for name in store.backend.names("") if name not in _NOT_ARTIFACTS]
    while pending:
        key = pending.pop()
        names = store.backend.names(key)
        if any(name.startswith("manifest-") for name in names):
            yield key
        elif key.count("/") + 1 < _MAX_DEPTH:
            pending += [f"{key}/{name}" for name in names if "." not in name]


def _parents_of_all(store: Generations) -> Iterator[dict[str, str]]:
    """Parents of every kept generation; a manifest never changes, so each is read once a process."""
    for key in all_keys(store):
        for number in store.numbers(key):
            mark = (key, number)
            if mark not in store.parents_seen:
                manifest = _read(store, key, number)
                if manifest is None:
                    continue
                store.parents_seen[mark] = manifest.parents
            yield store.parents_seen[mark]
