"""Defaults and bounds of the search."""

from dataclasses import asdict
from typing import Any

import pytest

from yt8m_assets.ensemble.config import SearchConfig
from yt8m_assets.errors import ConfigError


def test_every_option_and_its_default_is_known_here() -> None:
    assert asdict(SearchConfig()) == {
        "num_trials": 2000,
        "num_initial_points": 12,
        "num_starts": 6,
        "w0_bounds": (0.1, 1000.0),
        "num_folds": 5,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("num_trials", 1, 0),
        ("num_initial_points", 1, 0),
        ("num_starts", 0, -1),
        ("num_folds", 0, -1),
        ("num_folds", 2, 1),
        ("w0_bounds", (0.1, 0.2), (0.2, 0.2)),
        ("w0_bounds", (0.1, 0.2), (0.0, 0.2)),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_the_fields_name(field: str, good: Any, bad: Any) -> None:
    assert getattr(SearchConfig(**{field: good}), field) == good
    with pytest.raises(ConfigError, match=rf"search\.{field} = "):
        SearchConfig(**{field: bad})
