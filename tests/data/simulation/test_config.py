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


def test_every_option_is_known_here():
    assert [f.name for f in dataclasses.fields(SimulationConfig)] == [
        "seed",
        "num_classes",
        "num_rated_classes",
        "num_groups",
        "zipf_exponent",
        "zipf_offset",
        "num_train_videos",
        "num_validate_videos",
        "num_test_videos",
        "num_train_shards",
        "num_validate_shards",
        "num_test_shards",
        "min_seconds",
        "max_seconds",
        "mean_extra_labels",
        "max_labels",
        "same_group_probability",
        "missing_label_probability",
        "mean_spurious_labels",
        "max_intervals",
        "min_interval_seconds",
        "max_interval_seconds",
        "min_gap_seconds",
        "gains",
        "num_modes",
        "class_norm_rgb",
        "class_norm_audio",
        "group_norm_rgb",
        "group_norm_audio",
        "rgb_only_share",
        "audio_only_share",
        "rgb_only_boost",
        "audio_only_boost",
        "background_share",
        "background_rho",
        "num_ratings",
        "active_probability",
        "positive_share",
        "rater_sd_seconds",
        "flip_probability",
    ]
