"""The fixed part of the simulation: how often each class occurs, how it looks, which are rated, their names."""

from dataclasses import dataclass

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig

RGB_SIZE, AUDIO_SIZE = 1024, 128

_WORLD_STREAM = 0
"""First word of the spawn key of this module's random stream; scripts.py uses the others."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is the same for all videos of a config. C classes, M modes, F = 1152 features."""

    frequencies: np.ndarray
    """float64 [C]: chance that a label drawn at random is this class."""
    groups: np.ndarray
    """int64 [C]: the group of each class."""
    modalities: tuple[str, ...]
    """Per class, where its own part lies: "both", "rgb" or "audio"."""
    rated_classes: tuple[int, ...]
    """Class ids with segment ratings, ascending."""
    prototypes: np.ndarray
    """float32 [C, M, F]: what an active class adds to a frame at gain 1 (own part + group part)."""

    def class_name(self, class_id: int) -> str:
        """A simulated name that says how the class can be recognised, e.g. "class 07 (rgb)"."""
        return f"class {class_id:02d} ({self.modalities[class_id]})"


def build_world(config: SimulationConfig) -> World:
    """The classes of a config, from its seed alone."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(_WORLD_STREAM,)))
    num_classes = config.num_classes
    weights = (np.arange(num_classes) + config.zipf_offset + 1.0) ** -config.zipf_exponent
    frequencies = weights / weights.sum()
    groups = rng.permutation(num_classes) % config.num_groups
    # mostly frequent ones, so that a fold of a hundred videos has ratings of nearly all of them
    rated = rng.choice(num_classes, config.num_rated_classes, replace=False, p=weights**4 / (weights**4).sum())
    rated.sort()
    modalities = _draw_modalities(config, rng, rated)
    return World(
        frequencies=frequencies,
        groups=groups,
        modalities=modalities,
        rated_classes=tuple(int(c) for c in rated),
        prototypes=_draw_prototypes(config, rng, groups, modalities),
    )


def _draw_modalities(config: SimulationConfig, rng: np.random.Generator, rated: np.ndarray) -> tuple[str, ...]:
    """Exact shares of each modality, among the rated classes as among the others: with few, luck would rule."""
    names = np.empty(config.num_classes, dtype=object)
    for members in (rated, np.setdiff1d(np.arange(config.num_classes), rated)):
        num_rgb, num_audio = (round(s * len(members)) for s in (config.rgb_only_share, config.audio_only_share))
        kinds = ["rgb"] * num_rgb + ["audio"] * num_audio
        names[rng.permutation(members)] = kinds + ["both"] * (len(members) - len(kinds))
    return tuple(names)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random unit vectors along the last axis."""
    vectors = rng.standard_normal(shape)
    return vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))


def _draw_prototypes(
    config: SimulationConfig, rng: np.random.Generator, groups: np.ndarray, modalities: tuple[str, ...]
) -> np.ndarray:
    parts = []
    for name, size, class_norm, group_norm, boost in (
        ("rgb", RGB_SIZE, config.class_norm_rgb, config.group_norm_rgb, config.rgb_only_boost),
        ("audio", AUDIO_SIZE, config.class_norm_audio, config.group_norm_audio, config.audio_only_boost),
    ):
        norms = np.array([{"both": class_norm, name: class_norm * boost}.get(m, 0.0) for m in modalities])
        own = _directions(rng, (config.num_classes, config.num_modes, size)) * norms[:, None, None]
        shared = _directions(rng, (config.num_groups, 1, size)) * group_norm
        parts.append(own + shared[groups])
    return np.concatenate(parts, axis=-1).astype(np.float32)
