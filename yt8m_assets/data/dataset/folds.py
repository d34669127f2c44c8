"""Which shards are held out, and the proof that no video is on both sides."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yt8m_assets.errors import DataError

_CLOUD_ORDER = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CLOUD_NAME = re.compile(r"validate([0-9a-zA-Z])([0-9a-zA-Z])\.tfrecord")
_LOCAL_NAME = re.compile(r"validate([0-9]{4})\.tfrecord")
NUM_ORIGINAL_HOLDOUT = 300
"""Validate shards the original held out, of 3844."""


def _name(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def original_rank(uri: str) -> int | None:
    """Place of a validate shard in the original's order (SPEC section 8); None for any other name.

    Cloud names (`validateXY.tfrecord`) count X fastest over digits, a-z, A-Z; local ones (`validate0123.tfrecord`)
    carry the place itself.
    """
    name = _name(uri)
    local = _LOCAL_NAME.fullmatch(name)
    if local:
        return int(local.group(1))
    cloud = _CLOUD_NAME.fullmatch(name)
    if cloud:
        first, second = (_CLOUD_ORDER.index(character) for character in cloud.groups())
        return second * len(_CLOUD_ORDER) + first
    return None


def original_holdout(uris: Iterable[str], num_shards: int = NUM_ORIGINAL_HOLDOUT) -> set[str]:
    """The shards among `uris` that the original held out: the first `num_shards` of its order (SPEC section 8).

    Train and test shards are never held out, and both naming schemes may occur together. Raises DataError when a shard
    does so under either name: its videos would count twice.
    """
    ranks = {uri: original_rank(uri) for uri in uris}
    named: dict[int, str] = {}
    for uri, rank in ranks.items():
        if rank is not None and (other := _name(named.setdefault(rank, uri))) != _name(uri):
            raise DataError(f"{other} and {_name(uri)} are one shard under a local and a cloud name; leave one out")
    return {uri for uri, rank in ranks.items() if rank is not None and rank < num_shards}


def seeded_holdout(uris: Iterable[str], fraction: float, seed: int) -> set[str]:
    """A share of the shards, at least one and never all, drawn by file name: the same names give the same choice."""
    ordered = sorted(uris, key=lambda uri: (_name(uri), uri))
    if len(ordered) < 2:
        raise DataError(f"a hold-out needs at least two shards, there are {len(ordered)}; write smaller shards")
    count = min(max(round(len(ordered) * fraction), 1), len(ordered) - 1)
    order = np.random.default_rng(seed).permutation(len(ordered))
    return {ordered[place] for place in order[:count]}


@dataclass(frozen=True)
class Duplicate:
    """A video id that occurs more than once."""

    video_id: str
    """The id."""
    uris: tuple[str, ...]
    """The shards it is in, one entry an occurrence."""

    def __str__(self) -> str:
        return f"{self.video_id} in {', '.join(_name(uri) for uri in self.uris)}"


def find_duplicates(ids: Mapping[str, np.ndarray | Sequence[str]]) -> list[Duplicate]:
    """Ids that occur more than once within or among shards, sorted. ids: shard URI -> its video ids (S11 or text)."""
    if not ids:
        return []
    names, counts = np.unique(
        np.concatenate([np.asarray(values, "S11") for values in ids.values()]), return_counts=True
    )
    return _placed(names[counts > 1], ids.items())


def find_leaks(
    training: Iterable[tuple[str, np.ndarray | Sequence[str]]], held_out: Mapping[str, np.ndarray | Sequence[str]]
) -> list[Duplicate]:
    """Ids on both sides of the hold-out, sorted, each with the shards it is in; of shards and their video ids."""
    if not held_out:
        return []
    known = np.unique(np.concatenate([np.asarray(values, "S11") for values in held_out.values()]))  # the smaller side
    leaking = [(uri, found) for uri, ids in training if len(found := _among(np.asarray(ids, "S11"), known))]
    shared = np.unique(np.concatenate([np.empty(0, "S11"), *(found for _, found in leaking)]))
    return _placed(shared, [*leaking, *held_out.items()])


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Those of the ids that are known; both S11, `known` sorted."""
    return ids[known[known.searchsorted(ids).clip(max=len(known) - 1)] == ids] if len(known) else ids[:0]


def _placed(names: np.ndarray, ids: Iterable[tuple[str, np.ndarray | Sequence[str]]]) -> list[Duplicate]:
    """Names (S11, sorted) with the shards they are in."""
    places: dict[bytes, list[str]] = {name: [] for name in names.tolist()}
    if places:
        for uri, values in ids:
            for name in _among(np.asarray(values, "S11"), names).tolist():
                places[name].append(uri)
    return [Duplicate(name.decode(), tuple(uris)) for name, uris in places.items()]


def require_disjoint(
    training: Iterable[tuple[str, np.ndarray | Sequence[str]]], held_out: Mapping[str, np.ndarray | Sequence[str]]
) -> None:
    """Raise DataError naming the videos when one is on both sides of the hold-out."""
    leaks = find_leaks(training, held_out)
    if leaks:
        shown = "; ".join(str(leak) for leak in leaks[:5])
        raise DataError(
            f"{len(leaks)} videos are both held out and trained on: {shown}; materialise pretraining_shards and "
            "segment_shards again, and if that changes nothing, look for copies of the videos among the rated shards"
        )


def require_unique(ids: Mapping[str, np.ndarray | Sequence[str]]) -> None:
    """Raise DataError naming the videos that occur twice."""
    duplicates = find_duplicates(ids)
    if duplicates:
        shown = "; ".join(str(duplicate) for duplicate in duplicates[:5])
        raise DataError(f"{len(duplicates)} video ids occur more than once: {shown}; remove the copies")
