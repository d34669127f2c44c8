import numpy as np
import pytest

from yt8m_assets.data import segment_windows
from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames, draw_noise, draw_scenes, noise_covariance
from yt8m_assets.data.simulation.scripts import Script, shard_scripts
from yt8m_assets.data.simulation.world import build_world

CONFIG = SimulationConfig(num_train_videos=12, num_train_shards=1)
WORLD = build_world(CONFIG)


@pytest.mark.parametrize("change", [{}, {"background_share": 0.0}, {"background_share": 1.0}, {"background_rho": 0.0}])
def test_noise_has_the_covariance_that_the_oracle_assumes(change):
    config = SimulationConfig(**change)
    noise = draw_noise(config, 40, 40_000, np.random.default_rng(0)).astype(np.float64)
    for seconds in (slice(0, 8), slice(32, 40)):
        np.testing.assert_allclose(np.cov(noise[seconds]), noise_covariance(config, 8), atol=0.03)


def test_a_scene_shares_its_background_and_a_cut_changes_it():
    config = SimulationConfig(scene_share=0.5, min_seconds=90, max_seconds=90)
    script = Script(video_id="abcd", num_seconds=90, activities=(), labels=(), ratings=())
    scenes = draw_scenes(config, "abcd", 90)
    lengths = np.bincount(scenes)
    assert len(lengths) >= 3
    assert ((lengths[:-1] >= 10) & (lengths[:-1] <= 30)).all()
    assert (np.diff(scenes) >= 0).all()
    assert not np.array_equal(scenes, draw_scenes(config, "efgh", 90))
    values = draw_frames(config, WORLD, script, np.random.default_rng(0)) * (4 / 255) + (4 / 512 - 2)
    expected = noise_covariance(config, 90, scenes)
    found = values @ values.T / values.shape[1]
    assert np.abs(found - expected)[~np.eye(90, dtype=bool)].max() < 0.2  # clipping takes a little
    assert found[scenes[:, None] != scenes].mean() < 0.1 < 0.4 < found[scenes[:, None] == scenes].mean()


@pytest.fixture(scope="module")
def videos():
    return [(s, draw_frames(CONFIG, WORLD, s, rng)) for s, rng in shard_scripts(CONFIG, WORLD, "train", 0)]


def test_bytes_are_spread_as_the_real_features(videos):
    """The real record: standard deviation 1.006 (rgb) and 0.974 (audio) after dequantising."""
    frames = np.concatenate([f for _, f in videos])
    values = frames * (4 / 255) + (4 / 512 - 2)
    assert frames.dtype == np.uint8
    assert frames.shape[1] == 1152
    assert 0.93 < values.std() < 1.02
    assert abs(values.mean()) < 0.05
    assert 0.03 < np.isin(frames, (0, 255)).mean() < 0.07


def test_an_active_class_shows_in_its_appearance_and_nowhere_else(videos):
    active, silent, other_mode = [], [], []
    for script, frames in videos:
        values = segment_windows(frames, 0)[0].reshape(-1, 1152)[: script.num_seconds]
        for activity in script.activities:
            # siblings share a part of the mean: project on the class's own part
            own = WORLD.prototypes[activity.class_id] - WORLD.prototypes[activity.class_id].mean(axis=0)
            on = activity.profile(0, script.num_seconds)
            projection = values @ own[activity.mode] / (own[activity.mode] ** 2).sum()
            active.append((projection[on > 0] / on[on > 0]).mean() if on.any() else 1.0)
            silent.append(projection[on == 0].mean())
            other_mode.append((values @ own[1 - activity.mode])[on > 0].mean())
    assert 0.75 < np.mean(active) < 1.1
    assert abs(np.mean(silent)) < 0.15
    assert np.mean(other_mode) < 0.0


def test_frames_follow_from_the_seed(videos):
    again = [draw_frames(CONFIG, WORLD, s, rng) for s, rng in shard_scripts(CONFIG, WORLD, "train", 0)]
    for (_, first), second in zip(videos, again, strict=True):
        np.testing.assert_array_equal(first, second)
