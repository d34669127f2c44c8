import dataclasses

import pytest

from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.errors import ConfigError


@pytest.mark.parametrize(
    "change",
    [
        {"num_rated_classes": 61},
        {"num_groups": 7},
        {"min_seconds": 4},
        {"max_seconds": 301},
        {"min_interval_seconds": 31},
        {"num_test_shards": 151},
        {"num_train_shards": 0},
        {"flip_probability": 1.5},
        {"rgb_only_share": 0.7, "audio_only_share": 0.7},
        {"class_norm_rgb": -1.0},
        {"mean_extra_labels": float("nan")},
        {"gains": ()},
        {"background_rho": 1.0},
        {"seed": -1},
        {"scene_seconds": 1},
        {"scene_share": 1.5},
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(change):
    with pytest.raises(ConfigError, match=f"simulation.*{next(iter(change))}"):
        SimulationConfig(**change)


def test_the_config_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SimulationConfig().seed = 1
    with pytest.raises(TypeError):
        SimulationConfig(1)


def test_every_option_and_its_default_is_known_here():
    """The demo's dataset, and the oracle's score on it, follow from them."""
    assert dataclasses.asdict(SimulationConfig()) == {
        "seed": 8,
        "num_classes": 60,
        "num_rated_classes": 24,
        "num_groups": 12,
        "zipf_exponent": 0.7,
        "zipf_offset": 3.0,
        "num_train_videos": 700,
        "num_validate_videos": 400,
        "num_test_videos": 150,
        "num_train_shards": 7,
        "num_validate_shards": 9,
        "num_test_shards": 3,
        "min_seconds": 60,
        "max_seconds": 180,
        "mean_extra_labels": 2.0,
        "max_labels": 6,
        "same_group_probability": 0.5,
        "missing_label_probability": 0.1,
        "mean_spurious_labels": 0.15,
        "max_intervals": 3,
        "min_interval_seconds": 8,
        "max_interval_seconds": 30,
        "min_gap_seconds": 5,
        "gains": (0.75, 1.0, 1.25),
        "num_modes": 2,
        "class_norm_rgb": 3.4,
        "class_norm_audio": 2.25,
        "group_norm_rgb": 1.7,
        "group_norm_audio": 1.2,
        "rgb_only_share": 0.2,
        "audio_only_share": 0.2,
        "rgb_only_boost": 1.2,
        "audio_only_boost": 1.4,
        "background_share": 0.3,
        "background_rho": 0.9,
        "num_ratings": 5,
        "active_probability": 0.775,
        "positive_share": 0.65,
        "rater_sd_seconds": 1.0,
        "flip_probability": 0.02,
        "scene_seconds": 20,
        "scene_share": 0.0,
        "together_probability": 0.0,
        "uniform_ratings": False,
    }
