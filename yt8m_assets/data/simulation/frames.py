"""The features of a simulated video: slow background, white noise and what its active classes add, as bytes."""

from zlib import crc32

import numpy as np

from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.data.simulation.scripts import Script
from yt8m_assets.data.simulation.world import World


def noise_covariance(config: SimulationConfig, length: int, scenes: np.ndarray | None = None) -> np.ndarray:
    """float64 [length, length]: covariance over time of one feature's noise (scene's part, slow part, white part).

    scenes: int [length], the scene of each second; None: all seconds are of one scene.
    """
    seconds = np.arange(length)
    slow = config.background_rho ** np.abs(seconds[:, None] - seconds[None, :])
    rest = config.background_share * slow + (1.0 - config.background_share) * np.eye(length)
    if not config.scene_share:
        return rest
    same = np.ones((length, length)) if scenes is None else scenes[:, None] == scenes[None, :]
    return config.scene_share * same + (1.0 - config.scene_share) * rest


def draw_scenes(config: SimulationConfig, video_id: str, num_seconds: int) -> np.ndarray:
    """int64 [T]: the scene of each second, from 0; all 0 where there are no scenes. Cuts follow from the video's id."""
    if not config.scene_share:
        return np.zeros(num_seconds, np.int64)
    rng = np.random.default_rng([config.seed, crc32(video_id.encode())])
    mean = config.scene_seconds
    lengths = rng.integers(mean // 2, mean + mean // 2, size=2 * num_seconds // mean + 2, endpoint=True)
    return np.searchsorted(np.cumsum(lengths), np.arange(num_seconds), side="right")


def draw_frames(config: SimulationConfig, world: World, script: Script, rng: np.random.Generator) -> np.ndarray:
    """uint8 [T, 1152], quantised as the real features are (SPEC section 1: 4 / 255 a step, clipped at 2)."""
    num_features = world.prototypes.shape[-1]
    frames = draw_noise(config, script.num_seconds, num_features, rng)
    if config.scene_share:
        scenes = draw_scenes(config, script.video_id, script.num_seconds)
        backgrounds = rng.standard_normal((scenes[-1] + 1, num_features), dtype=np.float32)
        frames *= np.float32(np.sqrt(1.0 - config.scene_share))
        frames += np.float32(np.sqrt(config.scene_share)) * backgrounds[scenes]
    for activity in script.activities:
        profile = activity.profile(0, script.num_seconds)
        active = np.flatnonzero(profile)
        # element by element, never a matrix product: the bytes must not depend on a BLAS or its threads
        frames[active] += profile[active, None] * world.prototypes[activity.class_id, activity.mode]
    frames += np.float32(2.0)
    frames *= np.float32(255.0 / 4.0)
    np.clip(frames, 0.0, 255.0, out=frames)
    return frames.astype(np.uint8)


def draw_noise(config: SimulationConfig, num_seconds: int, num_features: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [T, F] of unit variance: AR(1) + white noise, drawn as the one ARMA(1, 1) process that equals their sum.

    One normal a value instead of two. With slow variance s, rho and white variance w, the process is
    x[t] = rho x[t-1] + e[t] - theta e[t-1]; theta and var(e) match the autocovariances of the sum.
    """
    rho, slow = config.background_rho, config.background_share
    white = 1.0 - slow
    # u = x[t] - rho x[t-1] = slow innovation + w[t] - rho w[t-1] is a moving average of order 1
    variance = slow * (1.0 - rho**2) + white * (1.0 + rho**2)
    covariance = -white * rho
    if covariance == 0.0:
        theta, sd = 0.0, np.sqrt(variance)
    else:
        ratio = variance / covariance  # theta solves theta^2 + ratio theta + 1 = 0, the root inside the unit circle
        theta = float((-ratio - np.sqrt(ratio**2 - 4.0)) / 2.0)
        sd = np.sqrt(-covariance / theta)
    innovations = rng.standard_normal((num_seconds + 1, num_features), dtype=np.float32)
    innovations *= np.float32(sd)
    frames = innovations[1:].copy()
    # stationary start: var(x) = 1 and cov(x[0], e[0]) = var(e)
    frames[0] += np.float32(np.sqrt(max(1.0 - sd**2, 0.0)) / sd) * innovations[0]
    for t in range(1, num_seconds):
        frames[t] += np.float32(rho) * frames[t - 1]
        frames[t] -= np.float32(theta) * innovations[t]
    return frames
