"""The oracle that sees the whole video: P(positive rating | all frames), from the generative model itself.

As the oracle of a segment's own seconds (oracle.py), but a class's course is drawn over the whole video, so that what
the noise does elsewhere (a scene's background), where an interval began and how much of the video is active count. Left
out, beside what that one leaves out: that classes may be active together. It knows where scenes are cut; with more
than a thousand dimensions a cut is plain to see.

For evaluation alone: no module that trains, predicts or fuses may import this one.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.frames import draw_scenes, noise_covariance
from yt8m_assets.data.simulation.scripts import SEGMENT_SECONDS
from yt8m_assets.data.simulation.world import World, build_world
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.oracle import FramesOfVideo, Pair
from yt8m_assets.evaluation.oracle_courses import CourseChain
from yt8m_assets.evaluation.oracle_tables import build_tables

_BURN_IN, _SWEEPS, _DRAWS = 2, 5, 16
_PLAUSIBLE = 1e-3
_CHUNK = 96
_MARGIN = 2
"""Seconds beside a segment whose activity decides how a rater sees its own."""


def video_oracle_scores(
    config: SimulationConfig, videos: Iterable[FramesOfVideo], pairs: Sequence[Pair], *, chain: int = 0
) -> np.ndarray:
    """P(positive rating) of each pair, given that it is rated and all frames of its video: float64 [len(pairs)].

    `chain` seeds the draws. Raises DataError where a pair's video is not among `videos`.
    """
    world, rng = build_world(config), np.random.default_rng([config.seed, 7, chain])
    wanted: dict[tuple[str, int], list[int]] = {}
    for number, (video_id, _, class_id) in enumerate(pairs):
        wanted.setdefault((video_id, class_id), []).append(number)
    by_video: dict[str, list[int]] = {}
    for video_id, class_id in wanted:
        by_video.setdefault(video_id, []).append(class_id)
    scores, waiting = np.empty(len(pairs)), []
    missing = set(by_video)
    for video in videos:
        if video.video_id in missing and video.frames is not None:
            missing.discard(video.video_id)
            waiting += [(video.video_id, video.frames, class_id) for class_id in by_video[video.video_id]]
        if len(waiting) >= _CHUNK:
            _score(config, world, waiting, wanted, pairs, scores, rng)
            waiting = []
    if missing:
        raise DataError(f"{len(missing)} rated videos are not among the videos given, the first: {min(missing)}")
    if waiting:
        _score(config, world, waiting, wanted, pairs, scores, rng)
    return scores


def _score(
    config: SimulationConfig,
    world: World,
    rows: Sequence[tuple[str, np.ndarray, int]],
    wanted: dict[tuple[str, int], list[int]],
    pairs: Sequence[Pair],
    scores: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Fill the scores of the pairs of some (video id, frames, class) rows."""
    gibbs = _VideoGibbs(config, world, rows, rng)
    draws = gibbs.run()  # [N, all draws, T]
    for (video_id, frames, class_id), courses in zip(rows, draws, strict=True):
        for number in wanted[video_id, class_id]:
            scores[number] = _positive(config, courses[:, : len(frames)] > 0, pairs[number][1])


def _positive(config: SimulationConfig, active: np.ndarray, start: int) -> float:
    """P(positive | rated) of a segment from draws of when its class is active, bool [D, T]."""
    num_segments = active.shape[1] // SEGMENT_SECONDS
    whole = active[:, : num_segments * SEGMENT_SECONDS].reshape(len(active), num_segments, SEGMENT_SECONDS)
    mostly = whole.mean(axis=2) >= 0.5
    count, mine = mostly.sum(axis=1), mostly[:, start // SEGMENT_SECONDS]
    weights = np.ones(len(active))  # how likely the segment is rated, given the course
    if not config.uniform_ratings:
        share, mixed = config.active_probability, (count > 0) & (count < num_segments)
        likely = np.where(mine, share / np.maximum(count, 1), (1.0 - share) / np.maximum(num_segments - count, 1))
        weights = np.where(mixed, likely, 1.0 / num_segments)
    padded = np.pad(active, ((0, 0), (_MARGIN, _MARGIN)), mode="edge")
    pattern = padded[:, start : start + SEGMENT_SECONDS + 2 * _MARGIN]
    judged = rater_table(config)[pattern @ (1 << np.arange(pattern.shape[1]))]
    return float((weights * judged).sum() / weights.sum())


@lru_cache(maxsize=4)
def rater_table(config: SimulationConfig) -> np.ndarray:
    """P(positive) of each pattern of activity in a segment's seconds and two on each side, float64 [2 ** 9].

    Bit i of a pattern is second i - 2; what is active at its edge goes on beyond it.
    """
    length, draws = SEGMENT_SECONDS + 2 * _MARGIN, 2000
    rng = np.random.default_rng(0)
    table = np.empty(2**length)
    for code in range(2**length):
        active = code >> np.arange(length) & 1
        edges = np.diff(np.concatenate([[0], active, [0]]))
        covered = np.zeros(draws)
        for begin, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            far = 100.0
            seen = np.array([begin - far * (begin == 0), stop + far * (stop == length)]) - _MARGIN
            noisy = seen + config.rater_sd_seconds * rng.standard_normal((draws, 2))
            covered += np.clip(np.minimum(noisy[:, 1], SEGMENT_SECONDS) - np.maximum(noisy[:, 0], 0), 0, None)
        share = (covered >= config.positive_share * SEGMENT_SECONDS).mean()
        table[code] = share + config.flip_probability * (1.0 - 2.0 * share)
    return table


class _VideoGibbs:
    """Draws the courses of all plausible classes in turn, for N (video, rated class) rows at once; T seconds each."""

    def __init__(
        self,
        config: SimulationConfig,
        world: World,
        rows: Sequence[tuple[str, np.ndarray, int]],
        rng: np.random.Generator,
    ) -> None:
        self.rng, self.chain, self.num_modes = rng, CourseChain.of(config), config.num_modes
        vectors = world.prototypes.reshape(-1, world.prototypes.shape[-1]).astype(np.float64)
        self.gram = vectors @ vectors.T
        lengths = np.array([len(frames) for _, frames, _ in rows])
        num_seconds = int(lengths.max())
        self.targets = np.array([class_id for _, _, class_id in rows])
        self.presence = build_tables(config, _MARGIN).presence[self.targets]  # [N, C]
        self.rate = self.chain.rate(lengths)[:, None]
        self.start = self.chain.start(self.rate)
        self.inside = np.arange(num_seconds) < lengths[:, None]
        self.residual = np.zeros((len(rows), num_seconds, len(vectors)))
        whitening: dict[bytes, np.ndarray] = {}
        self.whitening, shapes = [], []
        for row, (video_id, frames, _) in enumerate(rows):
            scenes = draw_scenes(config, video_id, len(frames))
            scenes = np.pad(scenes, (0, num_seconds - len(frames)), mode="edge")
            key = scenes.tobytes()
            if key not in whitening:
                whitening[key] = np.linalg.inv(np.linalg.cholesky(noise_covariance(config, num_seconds, scenes)))
            self.whitening.append(whitening[key])
            values = frames * np.float32(4.0 / 255.0) + np.float32(4.0 / 512.0 - 2.0)
            self.residual[row, : len(frames)] = whitening[key][: len(frames), : len(frames)] @ (values @ vectors.T)
            shapes.append(key)
        made = {key: self.chain.whitened(matrix) for key, matrix in whitening.items()}
        self.shapes = np.stack([made[key] for key in shapes]) * self.inside[:, :, None]
        self.course = np.zeros((len(rows), config.num_classes, num_seconds))  # gains
        self.shown = np.zeros_like(self.course)  # whitened
        self.mode = np.zeros((len(rows), config.num_classes), np.int64)

    def run(self) -> np.ndarray:
        """Draws of the rated class's gains, float64 [N, D, T], after the others have settled."""
        everyone = np.arange(len(self.targets))
        plausible = []
        for class_id in range(self.course.shape[1]):
            present = self._posterior(class_id, everyone)[1].sum(axis=1)
            plausible.append(np.flatnonzero((present > _PLAUSIBLE) | (self.targets == class_id)))
        kept: list[list[np.ndarray]] = [[] for _ in everyone]
        for sweep in range(_BURN_IN + _SWEEPS):
            for class_id, members in enumerate(plausible):
                if len(members):
                    self._draw(class_id, members, kept if sweep >= _BURN_IN else None)
        return np.stack([np.concatenate(each) for each in kept])

    def _own(self, class_id: int, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whitened products [n, T, M] without the class's own part, and its squared lengths [M]."""
        columns = np.arange(class_id * self.num_modes, (class_id + 1) * self.num_modes)
        drawn = columns[0] + self.mode[members, class_id]
        own = self.shown[members, class_id][:, :, None] * self.gram[drawn][:, None, columns]
        return self.residual[members][:, :, columns] + own, self.gram[columns, columns]

    def _posterior(self, class_id: int, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Filtered states [T, n, M, J], and the probabilities that the class is there in each appearance [n, M]."""
        evidence, energy = self._own(class_id, members)
        evidence = evidence * self.inside[members][:, :, None]
        filtered, log = self.chain.forward(
            evidence, energy, self.shapes[members], self.rate[members], self.start[members]
        )
        presence = self.presence[members, class_id, None]
        log = log + np.log(presence / self.num_modes)
        top = np.maximum(log.max(axis=1, keepdims=True), 0.0)
        there, absent = np.exp(log - top), (1.0 - presence) * np.exp(-top)
        return filtered, there / (there.sum(axis=1, keepdims=True) + absent)

    def _draw(self, class_id: int, members: np.ndarray, kept: list[list[np.ndarray]] | None) -> None:
        """Redraw a class in some rows; where it is the rated one, keep several draws."""
        filtered, present = self._posterior(class_id, members)
        wanted = kept is not None and (self.targets[members] == class_id).any()
        rows = np.repeat(np.arange(len(members)), _DRAWS if wanted else 1)
        chances = np.cumsum(present[rows], axis=1)
        modes = (self.rng.random((len(rows), 1)) >= chances).sum(axis=1)
        there = modes < self.num_modes
        courses = np.zeros((len(rows), self.course.shape[2]))
        if there.any():
            courses[there] = self.chain.backward(filtered, rows[there], modes[there], self.rng)
        if wanted and kept is not None:
            for place, member in enumerate(members.tolist()):
                if self.targets[member] == class_id:
                    kept[member].append(courses[rows == place])
        first = np.searchsorted(rows, np.arange(len(members)))
        course, mode = courses[first], np.minimum(modes[first], self.num_modes - 1)
        shown = np.stack([self.whitening[m] @ c for m, c in zip(members.tolist(), course, strict=True)])
        shown *= self.inside[members]
        base = class_id * self.num_modes
        for place, member in enumerate(members.tolist()):
            change = self.shown[member, class_id, :, None] * self.gram[base + self.mode[member, class_id]]
            change -= shown[place, :, None] * self.gram[base + mode[place]]
            self.residual[member] += change
        self.course[members, class_id], self.shown[members, class_id] = course, shown
        self.mode[members, class_id] = mode
