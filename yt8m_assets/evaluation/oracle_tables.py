"""What the oracle knows before it looks: how likely each course of activity is, and how a rater judges it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.scripts import SEGMENT_SECONDS, Script, label_only_scripts
from yt8m_assets.data.simulation.world import build_world

_NUM_SCRIPTS = 4000
_WINDOWS_PER_ACTIVITY = 3
_PSEUDO_RATINGS = 2.0


@dataclass(frozen=True, kw_only=True)
class ProfileTable:
    """Courses of gains a class can take over a window of W seconds, J of them; the first is "not active"."""

    profiles: np.ndarray
    """float64 [J, W]: gain in each second."""
    log_prior: np.ndarray
    """float64 [J]: of the class under its condition (rated, or a true label of the video)."""


@dataclass(frozen=True, kw_only=True)
class OracleTables:
    """Estimated from label-only videos of the same config."""

    rated: ProfileTable
    """For a rated (segment, class)."""
    positive_probability: np.ndarray
    """float64 [J of rated]: chance of a positive rating given the course."""
    present: ProfileTable
    """For a true label at any segment of its video."""
    presence: np.ndarray
    """float64 [C, C]: chance of the column's class as a true label of a video published with the row's."""


@lru_cache(maxsize=2)  # hold-out and test share them; a second or two to make
def build_tables(config: SimulationConfig, context_seconds: int) -> OracleTables:
    """Tables for windows of 5 seconds and `context_seconds` more on each side."""
    world = build_world(config)
    rng = np.random.default_rng(config.seed)
    num_classes = config.num_classes
    rated_profiles, scores, present_profiles = [], [], []
    together, published = np.zeros((num_classes, num_classes)), np.zeros(num_classes)
    length = SEGMENT_SECONDS + 2 * context_seconds
    for script in label_only_scripts(config, world, _NUM_SCRIPTS):
        for start, class_id, score in script.ratings:
            rated_profiles.append(_profile(script, class_id, start - context_seconds, length))
            scores.append(score)
        for activity in script.activities:
            starts = rng.integers(script.num_seconds // SEGMENT_SECONDS, size=_WINDOWS_PER_ACTIVITY) * SEGMENT_SECONDS
            for start in starts - context_seconds:
                present_profiles.append(activity.profile(start, start + length))
        true = [a.class_id for a in script.activities]
        together[np.ix_(script.labels, true)] += 1.0
        published[list(script.labels)] += 1.0
    base = np.maximum(
        together.sum(axis=0) / published.sum(), 1e-6
    )  # a class never seen beside the row's: its overall share
    presence = (together + 5.0 * base) / (published + 5.0)[:, None]
    rated, rated_rows = _table(np.array(rated_profiles))
    present, _ = _table(np.array(present_profiles))
    return OracleTables(
        rated=rated,
        positive_probability=_positive_probability(rated.profiles > 0, rated_rows, np.array(scores)),
        present=present,
        presence=np.minimum(presence, 0.999),
    )


def _profile(script: Script, class_id: int, start: int, length: int) -> np.ndarray:
    activity = script.activity(class_id)
    return np.zeros(length, dtype=np.float32) if activity is None else activity.profile(start, start + length)


def _table(profiles: np.ndarray) -> tuple[ProfileTable, np.ndarray]:
    """The distinct rows with their shares, and each input row's place among them."""
    silent = np.zeros((1, profiles.shape[1]), dtype=profiles.dtype)  # sorts first, so "not active" is row 0
    distinct, rows, counts = np.unique(
        np.concatenate([silent, profiles]), axis=0, return_inverse=True, return_counts=True
    )
    return ProfileTable(profiles=distinct.astype(np.float64), log_prior=np.log(counts / counts.sum())), rows.ravel()[1:]


def _positive_probability(active: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Raters see when, not how strongly: courses that differ in gains alone share one estimate."""
    _, pattern = np.unique(active, axis=0, return_inverse=True)
    pattern = pattern.ravel()
    num_patterns = int(pattern.max()) + 1
    positives = np.bincount(pattern[rows], weights=scores, minlength=num_patterns)
    counts = np.bincount(pattern[rows], minlength=num_patterns)
    return ((positives + _PSEUDO_RATINGS * scores.mean()) / (counts + _PSEUDO_RATINGS))[pattern]
