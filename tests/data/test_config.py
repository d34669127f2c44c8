"""Defaults and bounds of what a recipe says of its data."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from yt8m_assets.data.config import DataConfig, HoldoutConfig
from yt8m_assets.data.simulation.config import SimulationConfig
from yt8m_assets.errors import ConfigError

REAL = DataConfig(pretraining=("a*",), segments=("b*",), test=("c*",), segment_classes_uri="d.csv")


def test_every_option_and_its_default_is_known_here() -> None:
    """The real set's figures, where it has them."""
    assert asdict(HoldoutConfig()) == {"rule": "original", "num_shards": 300, "fraction": 1 / 3, "seed": 7}
    assert asdict(REAL) == {
        "pretraining": ("a*",),
        "segments": ("b*",),
        "test": ("c*",),
        "segment_classes_uri": "d.csv",
        "vocabulary_uri": None,
        "num_classes": 3862,
        "label_map_uri": None,
        "unlisted_ratings": "raise",
        "feature_sizes": (1024, 128),
        "shard_share": 1.0,
        "max_frames": 300,
        "holdout": asdict(HoldoutConfig()),
        "simulation": None,
        "memory_budget": 4 * 2**30,
        "on_corrupt": "raise",
        "max_quarantined": 100,
        "num_workers": 0,
    }


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("num_classes", 1, 0),
        ("max_frames", 1, 0),
        ("memory_budget", 1, 0),
        ("max_quarantined", 0, -1),
        ("num_workers", 0, -1),
        ("feature_sizes", (0, 1), (0, 0)),
        ("feature_sizes", (1, 0), (2, -1)),
        ("feature_sizes", (1, 1), (1, 1, 1)),
        ("on_corrupt", "quarantine", "skip"),
        ("unlisted_ratings", "drop", "skip"),
        ("shard_share", 0.1, 0.0),
        ("shard_share", 1.0, 1.1),
        ("pretraining", ("a",), ()),
        ("segments", ("a",), "a"),
        ("segment_classes_uri", "a", ""),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(field: str, good: Any, bad: Any) -> None:
    assert getattr(replace(REAL, **{field: good}), field) == good
    with pytest.raises(ConfigError, match=rf"data\.{field} = "):
        replace(REAL, **{field: bad})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [("rule", "seeded", "random"), ("num_shards", 1, 0), ("fraction", 0.01, 0.0), ("fraction", 0.99, 1.0)],
)
def test_a_hold_out_is_some_of_the_shards(field: str, good: Any, bad: Any) -> None:
    assert getattr(HoldoutConfig(**{field: good}), field) == good
    with pytest.raises(ConfigError, match=rf"holdout\.{field} = "):
        HoldoutConfig(**{field: bad})


def test_data_are_simulated_or_named() -> None:
    assert DataConfig(simulation=SimulationConfig()).pretraining == ()
    with pytest.raises(ConfigError, match=r"data\.test = \('c\*',\), but the data is simulated"):
        DataConfig(simulation=SimulationConfig(), test=("c*",))
