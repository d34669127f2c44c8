"""The best possible scorer of the simulated dataset: P(positive rating | frames), from the generative model itself.

A class is silent or follows one of the courses of gains of oracle_tables.py in one of its appearances. Noise is
Gaussian with a known covariance over time, so the evidence for a course is a quadratic form of the frames' products
with the class's mean vector. The classes of a window overlap, so they are drawn in turn given the others (a short Gibbs
run) and the rated class's probability is averaged over the draws. Left out: evidence from the rest of the video,
clipping and quantisation.

For evaluation alone: no module that trains, predicts or fuses may import this one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.frames import noise_covariance
from yt8m_assets.data.simulation.scripts import SEGMENT_SECONDS
from yt8m_assets.data.simulation.world import World, build_world
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import mean_average_precision_at_k
from yt8m_assets.evaluation.oracle_tables import OracleTables, ProfileTable, build_tables
from yt8m_assets.ranking.segments import split_segment_id

Pair = tuple[str, int, int]
"""(video id, start second, class id)."""

CONTEXT_SECONDS = 2
"""Seconds on each side of a segment that shifted windows can see, so the oracle may too."""

_BURN_IN, _SWEEPS = 3, 12
_PLAUSIBLE = 1e-3
_CHUNK = 4096


class FramesOfVideo(Protocol):
    """What the oracle reads of a video (`yt8m_assets.data.Video` has both)."""

    video_id: str
    frames: np.ndarray | None


def oracle_scores(
    config: SimulationConfig,
    videos: Iterable[FramesOfVideo],
    pairs: Sequence[Pair],
    *,
    context_seconds: int = CONTEXT_SECONDS,
    chain: int = 0,
) -> np.ndarray:
    """P(positive rating) of each pair, given that it is rated (only rated pairs count in MAP): float64 [len(pairs)].

    `chain` seeds the Gibbs draws. Raises DataError where a pair's video is not among `videos` or ends before its
    segment.
    """
    world = build_world(config)
    windows = _read_windows(world, videos, pairs, context_seconds)
    tables = build_tables(config, context_seconds)
    scores = np.empty(len(pairs))
    rng = np.random.default_rng([config.seed, chain])
    for first in range(0, len(pairs), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        targets = np.array([class_id for _, _, class_id in pairs[chunk]], dtype=np.int64)
        scores[chunk] = _Gibbs(config, world, tables, targets, windows.take(chunk), rng).run()
    return scores


def oracle_map(
    config: SimulationConfig, ratings: Mapping[tuple[str, int], int], videos: Iterable[FramesOfVideo]
) -> float:
    """MAP of the oracle over `ratings` {(segment id "video:start", class id): 0 or 1}: the ceiling for any model."""
    keys = sorted(ratings)
    scores = oracle_scores(config, videos, [(*split_segment_id(segment_id), class_id) for segment_id, class_id in keys])
    rankings: dict[int, list[str]] = {}
    for i in np.argsort(-scores, kind="stable"):
        segment_id, class_id = keys[i]
        rankings.setdefault(class_id, []).append(segment_id)
    return mean_average_precision_at_k(rankings, ratings).map


def random_map(ratings: Mapping[tuple[str, int], int]) -> float:
    """Expected MAP of rankings in random order, in closed form: what a model that learned nothing gets."""
    by_class: dict[int, list[int]] = {}
    for (_, class_id), score in ratings.items():
        by_class.setdefault(class_id, []).append(score)
    precisions = []
    for scores in by_class.values():
        count, positives = len(scores), sum(scores)
        if positives:
            rank = np.arange(1, count + 1)
            # E[hits at a hit's rank]: itself and its share of the other positives among the ranks above
            others = (rank - 1) * (positives - 1) / max(count - 1, 1)
            precisions.append(float(((1.0 + others) / rank).mean()))
    return float(np.mean(precisions))


@dataclass(frozen=True)
class _Windows:
    """Per pair: products of its W frames with all C * M mean vectors, and which of the W frames the video has."""

    products: np.ndarray
    have: np.ndarray

    def take(self, chunk: slice) -> "_Windows":
        return _Windows(self.products[chunk], self.have[chunk])


def _read_windows(
    world: World, videos: Iterable[FramesOfVideo], pairs: Sequence[Pair], context_seconds: int
) -> _Windows:
    wanted: dict[str, list[int]] = {}
    for i, (video_id, _, _) in enumerate(pairs):
        wanted.setdefault(video_id, []).append(i)
    length = SEGMENT_SECONDS + 2 * context_seconds
    vectors = world.prototypes.reshape(-1, world.prototypes.shape[-1]).T
    products = np.zeros((len(pairs), length, vectors.shape[1]), dtype=np.float32)
    have = np.zeros((len(pairs), length), dtype=bool)
    for video in videos:
        members = wanted.pop(video.video_id, [])
        if not members or video.frames is None:
            continue
        frames = video.frames * np.float32(4.0 / 255.0) + np.float32(4.0 / 512.0 - 2.0)
        in_video = frames @ vectors
        for i in members:
            seconds = np.arange(pairs[i][1] - context_seconds, pairs[i][1] - context_seconds + length)
            have[i] = (seconds >= 0) & (seconds < len(frames))
            if not have[i, context_seconds : context_seconds + SEGMENT_SECONDS].any():
                raise DataError(f"video {video.video_id}: no frame at segment start {pairs[i][1]}")
            products[i, have[i]] = in_video[seconds[have[i]]]
    if wanted:
        raise DataError(f"{len(wanted)} rated videos are not among the videos given, the first: {sorted(wanted)[0]}")
    return _Windows(products, have)


class _Gibbs:
    """Draws the courses of all plausible classes in turn, for n rated pairs at once."""

    def __init__(
        self,
        config: SimulationConfig,
        world: World,
        tables: OracleTables,
        targets: np.ndarray,
        windows: _Windows,
        rng: np.random.Generator,
    ) -> None:
        self.tables, self.targets, self.rng = tables, targets, rng
        self.num_modes = config.num_modes
        vectors = world.prototypes.reshape(-1, world.prototypes.shape[-1]).astype(np.float64)
        self.gram = vectors @ vectors.T
        self.residual = windows.products.astype(np.float64)  # [n, W, C * M], less what the drawn courses explain
        precisions, self.pattern = _precisions(noise_covariance(config, windows.have.shape[1]), windows.have)
        self.precision = precisions[self.pattern]
        self.energies = [
            np.einsum("ji,pik,jk->pj", table.profiles, precisions, table.profiles, optimize=True)
            for table in (tables.present, tables.rated)
        ]
        self.course = np.zeros((len(targets), config.num_classes, self.residual.shape[1]))
        self.mode = np.zeros((len(targets), config.num_classes), dtype=np.int64)
        self.plausible = [self._screen(class_id) for class_id in range(config.num_classes)]

    def run(self) -> np.ndarray:
        """P(positive rating) of each pair."""
        total = np.zeros(len(self.targets))
        by_target = {int(c): np.flatnonzero(self.targets == c) for c in np.unique(self.targets)}
        for sweep in range(_BURN_IN + _SWEEPS):
            for class_id, members in enumerate(self.plausible):
                if len(members):
                    self._draw(class_id, members)
            for class_id, members in by_target.items():
                posterior = self._draw(class_id, members)
                if sweep >= _BURN_IN:
                    courses = posterior.reshape(len(members), self.num_modes, -1).sum(axis=1)
                    total[members] += courses @ self.tables.positive_probability
        return total / _SWEEPS

    def _screen(self, class_id: int) -> np.ndarray:
        """Pairs where a class may be active: the others' part is not yet explained, which errs towards keeping it."""
        everyone = np.arange(len(self.targets))
        table = self.tables.present
        posterior = self._posterior(class_id, everyone, table, self._log_prior(class_id, everyone, table))
        silent = posterior.reshape(len(everyone), self.num_modes, -1)[:, :, 0].sum(axis=1)
        return np.flatnonzero((1.0 - silent > _PLAUSIBLE) & (self.targets != class_id))

    def _log_prior(self, class_id: int, members: np.ndarray, table: ProfileTable) -> np.ndarray:
        """[members, J] of a class that need not be a label of the video: course 0 holds its absence too."""
        presence = self.tables.presence[self.targets[members], class_id]
        log_prior = table.log_prior + np.log(presence)[:, None]
        log_prior[:, 0] = np.log(1.0 - presence + presence * np.exp(table.log_prior[0]))
        return log_prior

    def _posterior(self, class_id: int, members: np.ndarray, table: ProfileTable, log_prior: np.ndarray) -> np.ndarray:
        """[members, M * J] probabilities of appearance and course given all other classes' courses."""
        precision = self.precision[members]
        energy = self.energies[table is self.tables.rated][self.pattern[members]]
        logits = []
        for mode in range(self.num_modes):
            column = class_id * self.num_modes + mode
            own = (
                self.course[members, class_id]
                * self.gram[self.mode[members, class_id] + class_id * self.num_modes, column][:, None]
            )
            evidence = np.einsum("nik,nk->ni", precision, self.residual[members, :, column] + own)
            logits.append(evidence @ table.profiles.T - 0.5 * self.gram[column, column] * energy + log_prior)
        stacked = np.concatenate(logits, axis=1)
        weights = np.exp(stacked - stacked.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _draw(self, class_id: int, members: np.ndarray) -> np.ndarray:
        """Redraws a class in some pairs; returns the probabilities it was drawn from."""
        is_target = len(members) > 0 and bool(self.targets[members[0]] == class_id)
        table = self.tables.rated if is_target else self.tables.present
        log_prior = table.log_prior if is_target else self._log_prior(class_id, members, table)
        posterior = self._posterior(class_id, members, table, log_prior)
        cumulative = np.cumsum(posterior, axis=1)
        draws = (self.rng.random((len(members), 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
        mode, row = np.divmod(draws, len(table.profiles))
        first = class_id * self.num_modes
        old, new = self.course[members, class_id], table.profiles[row]
        old_mode = self.mode[members, class_id]
        moved = np.flatnonzero((old != new).any(axis=1) | ((old_mode != mode) & new.any(axis=1)))
        where = members[moved]
        change = old[moved, :, None] * self.gram[first + old_mode[moved]][:, None, :]
        change -= new[moved, :, None] * self.gram[first + mode[moved]][:, None, :]
        self.residual[where] += change
        self.course[members, class_id], self.mode[members, class_id] = new, mode
        return posterior


def _precisions(covariance: np.ndarray, have: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[P, W, W]: inverse covariance over the frames a window has, zero elsewhere; and each window's row in it."""
    patterns, rows = np.unique(have, axis=0, return_inverse=True)
    inverses = np.zeros((len(patterns), *covariance.shape))
    for i, pattern in enumerate(patterns):
        kept = np.flatnonzero(pattern)
        inverses[i][np.ix_(kept, kept)] = np.linalg.inv(covariance[np.ix_(kept, kept)])
    return inverses, rows.ravel()
