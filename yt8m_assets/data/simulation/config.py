"""What the simulated dataset is made of: every parameter of its generative model."""

import re
from dataclasses import dataclass, fields
from typing import Any

from yt8m_assets.errors import ConfigError

NUM_SHARD_NAMES = 62 * 62
"""Two characters over 0-9a-zA-Z, as the real dataset's 3844 shards a split (SPEC section 8)."""

SPLITS = ("train", "validate", "test")

SWITCH_FIELDS = ("scene_seconds", "scene_share", "together_probability", "uniform_ratings")
"""Fields that came later and are off by default."""

CONTEXT_SWITCHES: dict[str, dict[str, Any]] = {
    "long intervals": {"min_interval_seconds": 25, "max_interval_seconds": 75, "max_intervals": 2},
    "scenes": {"scene_share": 0.5},
    "classes together": {"together_probability": 0.7},
    "rater noise": {"flip_probability": 0.1},
    "uniform ratings": {"uniform_ratings": True},
}
"""Reasons why a model may gain from more than a segment's own seconds: values to switch each on with (docs/beyond.md).
"""


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """Sizes and distributions of the simulated dataset; two equal configs make byte-identical shards.

    The values are balanced so that small models learn in a hundred or two steps, yet stay well below the oracle. Two
    things keep averaging over shifted windows useful, as it is on the real data: most of the noise is white
    (neighbouring seconds average it out), and intervals are long against a shift (a boundary blurs few windows).
    """

    seed: int = 8
    """Everything random follows from it: the classes' appearance, the labels, the noise, the raters."""
    num_classes: int = 60
    """Vocabulary size; a class's index is its frequency rank."""
    num_rated_classes: int = 24
    """How many classes have segment ratings (the real set: 1000 of 3862); mostly frequent ones."""
    num_groups: int = 12
    """Groups of classes that look and occur alike; must divide `num_classes`."""
    zipf_exponent: float = 0.7
    """A class's frequency is (rank + `zipf_offset`) ** -`zipf_exponent`."""
    zipf_offset: float = 3.0
    """Flattens the head of the frequency law."""

    num_train_videos: int = 700
    """Videos of 2/frame/train (video labels)."""
    num_validate_videos: int = 400
    """Videos of 2/frame/validate (video labels) and, the same ones, of 3/frame/validate (segment ratings)."""
    num_test_videos: int = 150
    """Videos of 3/frame/test (no labels in the shards)."""
    num_train_shards: int = 7
    """Shards of 2/frame/train."""
    num_validate_shards: int = 9
    """Shards of 2/frame/validate, and of 3/frame/validate; folds are made of whole shards."""
    num_test_shards: int = 3
    """Shards of 3/frame/test."""
    min_seconds: int = 60
    """Shortest video, in seconds (= frames)."""
    max_seconds: int = 180
    """Longest video, in seconds (= frames), at most 300 as in the real set."""

    mean_extra_labels: float = 2.0
    """A video has 1 + Poisson(this) true labels."""
    max_labels: int = 6
    """Cut of the number of true labels of a video."""
    same_group_probability: float = 0.5
    """Chance that a further label comes from the group of an earlier one."""
    missing_label_probability: float = 0.1
    """Chance that a true label is not among the published video labels."""
    mean_spurious_labels: float = 0.15
    """Published labels that are not true: Poisson(this) a video."""

    max_intervals: int = 3
    """A label is active in 1 to this many intervals."""
    min_interval_seconds: int = 8
    """Shortest interval."""
    max_interval_seconds: int = 30
    """Longest interval."""
    min_gap_seconds: int = 5
    """Least pause between two intervals of a label."""
    gains: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Strength of an interval: one of these, equally likely."""
    num_modes: int = 2
    """Appearances of a class; a video shows one of them."""

    class_norm_rgb: float = 3.4
    """Length of a class's own mean vector in rgb (noise: 1 in every dimension)."""
    class_norm_audio: float = 2.25
    """The same in audio."""
    group_norm_rgb: float = 1.7
    """Length of the part of the mean vector that a group's classes share, in rgb."""
    group_norm_audio: float = 1.2
    """The same in audio."""
    rgb_only_share: float = 0.2
    """Share of the classes whose own part is in rgb alone."""
    audio_only_share: float = 0.2
    """Share of the classes whose own part is in audio alone."""
    rgb_only_boost: float = 1.2
    """Factor on the own part of an rgb-only class."""
    audio_only_boost: float = 1.4
    """Factor on the own part of an audio-only class."""

    background_share: float = 0.3
    """Share of the noise variance that varies slowly (AR(1)); the rest is white."""
    background_rho: float = 0.9
    """AR(1) coefficient of the slow part, per second."""

    num_ratings: int = 5
    """Rated segments of a (video, published rated label)."""
    active_probability: float = 0.775
    """Weight of drawing a rated segment among those active for half their time or more; sets the share of positives."""
    positive_share: float = 0.65
    """Share of a segment that must be active for a positive rating."""
    rater_sd_seconds: float = 1.0
    """Standard deviation of a rater's idea of where an interval begins or ends."""
    flip_probability: float = 0.02
    """Chance that a rating is the wrong way round, drawn for each rated segment by itself."""

    scene_seconds: int = 20
    """Mean length of a scene, which a cut ends."""
    scene_share: float = 0.0
    """Share of the noise variance that is one background for a whole scene; the shares above are of the rest."""
    together_probability: float = 0.0
    """Chance that a further label of a video is active exactly where an earlier one is."""
    uniform_ratings: bool = False
    """Draw the rated segments without regard to what is active: a label's share in the video then tells of them."""

    def __post_init__(self) -> None:
        self._check_sizes()
        for name in (f.name for f in fields(self) if re.search(r"_(share|probability|rho)$", f.name)):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"simulation.{name} must lie in [0, 1], got {getattr(self, name)!r}")
        for name in (f.name for f in fields(self) if re.search(r"(norm|mean|_sd_|boost|zipf)", f.name)):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"simulation.{name} must be 0 or more, got {getattr(self, name)!r}")
        if self.rgb_only_share + self.audio_only_share > 1.0:
            raise ConfigError("simulation.rgb_only_share + simulation.audio_only_share must be at most 1")
        if not self.gains or min(self.gains) <= 0.0:
            raise ConfigError(f"simulation.gains must be positive numbers, got {self.gains!r}")
        if self.background_rho >= 1.0:
            raise ConfigError("simulation.background_rho must be below 1")
        if self.scene_seconds < 2:
            raise ConfigError(f"simulation.scene_seconds must be at least 2, got {self.scene_seconds!r}")

    def _check_sizes(self) -> None:
        sizes = (f.name for f in fields(self) if f.name.startswith(("num_", "max_", "min_")))
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"simulation.{name} must be at least 1, got {getattr(self, name)!r}")
        if self.seed < 0:
            raise ConfigError(f"simulation.seed must be 0 or more, got {self.seed!r}")
        if self.num_rated_classes > self.num_classes:
            raise ConfigError("simulation.num_rated_classes must be at most simulation.num_classes")
        if self.num_classes % self.num_groups:
            raise ConfigError("simulation.num_groups must divide simulation.num_classes")
        if not 5 <= self.min_seconds <= self.max_seconds <= 300:
            raise ConfigError(
                "simulation.min_seconds and max_seconds must satisfy 5 <= min_seconds <= max_seconds <= 300"
            )
        if self.min_interval_seconds > self.max_interval_seconds:
            raise ConfigError("simulation.min_interval_seconds must be at most simulation.max_interval_seconds")
        for split in SPLITS:
            if not self.num_shards(split) <= min(self.num_videos(split), NUM_SHARD_NAMES):
                raise ConfigError(
                    f"simulation.num_{split}_shards must be at most num_{split}_videos and at most {NUM_SHARD_NAMES}"
                )

    def identity(self) -> dict[str, Any]:
        """All that decides the bytes: fields by name, without switches that are off, so that a further one changes
        the identity of no dataset that there is."""
        off = {f.name for f in fields(self) if f.name in SWITCH_FIELDS and getattr(self, f.name) == f.default}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in off}

    def num_videos(self, split: str) -> int:
        """Videos of "train", "validate" or "test"."""
        return int(getattr(self, f"num_{split}_videos"))

    def num_shards(self, split: str) -> int:
        """Shards of "train", "validate" or "test"."""
        return int(getattr(self, f"num_{split}_shards"))
