"""The space of a study: how it is said, and that what is proposed follows from space, seed and trials alone."""

import math
from typing import Any

import pytest

from yt8m_assets.errors import ConfigError
from yt8m_assets.training.space import Point, Range, Space, read_space

SPACE = read_space({"lr": [1e-4, 1e-1], "layers": [1, 4], "pooling": ["mean", "last", "concat"], "steps": [30]})


def score(point: Point) -> float:
    """Best at lr = 0.01, three layers, "last"."""
    return -abs(math.log10(point["lr"]) + 2) - abs(point["layers"] - 3) / 3 + (point["pooling"] == "last")


def study(space: Space, num_trials: int, seed: int = 0, past: Any = ()) -> list[tuple[Point, float]]:
    trials = list(past)
    while len(trials) < num_trials and (point := space.propose(trials, seed, 5)) is not None:
        trials.append((point, score(point)))
    return trials


def test_how_a_space_is_said() -> None:
    assert SPACE.searched == {"lr": Range(1e-4, 1e-1), "layers": Range(1, 4), "pooling": ("mean", "last", "concat")}
    assert SPACE.fixed == {"steps": 30}
    assert (Range(1e-4, 1e-1).logarithmic, Range(0.0, 1.0).logarithmic, Range(1.0, 9.0).logarithmic) == (
        True,
        False,
        False,
    )
    assert [Range(1e-4, 1e-1).at(share) for share in (0, 0.5, 1)] == [1e-4, 0.003162, 1e-1]
    assert [Range(1, 4).at(share) for share in (0, 0.5, 1)] == [1, 2, 4]
    assert read_space({"a": [0, 1.5]}).searched == {"a": Range(0.0, 1.5)}
    assert read_space({"a": [True, False]}).searched == {"a": (True, False)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.1}, "lr = 0.1: give a list"),
        ({"lr": []}, r"lr = \[\]: give a list"),
        ({"lr": [0.2, 0.1]}, "from the lower to the higher"),
        ({"lr": [0.0, math.inf]}, "numbers must be finite"),
        ({"lr": [math.nan, 0.1, 0.2]}, "numbers must be finite"),
        ({"lr": [1, 10**400]}, "no larger than a table holds"),
        ({"lr": ["a", "b", "a"]}, "the same choice twice"),
        ({"lr": [0.1]}, "nothing is searched"),
        ({}, "nothing is searched"),
    ],
)
def test_what_is_no_space(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space(values)


@pytest.mark.parametrize(
    ("low", "high"), [(0.12341, 0.12349), (123456.7, 123459.2), (-1.00004, -1.00001), (1e-300, 1e-2), (-1e15, 1e15)]
)
def test_points_lie_in_a_narrow_space_too(low: float, high: float) -> None:
    found = [point["a"] for point, _ in study_of_one(read_space({"a": [low, high]}), 8)]
    assert all(low <= value <= high for value in found)
    assert len(set(found)) == 8


def study_of_one(space: Space, num_trials: int) -> list[tuple[Point, float]]:
    trials: list[tuple[Point, float]] = []
    while len(trials) < num_trials and (point := space.propose(trials, 0, 6)) is not None:
        trials.append((point, len(trials) % 3))
    return trials


def test_points_lie_in_the_space_and_are_plain_values() -> None:
    for point, _ in study(SPACE, 9):
        assert {name: type(value) for name, value in point.items()} == {
            "lr": float,
            "layers": int,
            "pooling": str,
            "steps": int,
        }
        assert 1e-4 <= point["lr"] <= 1e-1
        assert 1 <= point["layers"] <= 4
        assert point["steps"] == 30


def test_a_study_goes_on_as_it_would_have() -> None:
    whole = study(SPACE, 10)
    for cut in (3, 5, 8):
        assert study(SPACE, 10, past=whole[:cut]) == whole
    assert study(SPACE, 10, seed=1) != whole


@pytest.mark.slow
def test_it_finds_what_random_draws_do_not() -> None:
    found = [max(value for _, value in study(SPACE, 16, seed)) for seed in range(3)]
    drawn = [max(value for _, value in study(SPACE, 5, seed)) for seed in range(3)]
    assert sum(found) / 3 > sum(drawn) / 3 + 0.2


def test_a_space_that_has_been_tried_ends_the_study() -> None:
    small = read_space({"pooling": ["mean", "last"], "lr": [0.01], "layers": [3]})
    assert [point["pooling"] for point, _ in study(small, 9)] in (["mean", "last"], ["last", "mean"])
