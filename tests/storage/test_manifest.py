from typing import Any

import pytest

from yt8m_assets.storage.manifest import ABSENT, differences


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1, "n": {"x": 2}}, {"a": 1, "n": {"x": 2}}, []),
        ({"n": {"x": 2, "y": {"z": 0}}}, {"n": {"x": 5, "y": {"z": 1}}}, [("n.x", 2, 5), ("n.y.z", 0, 1)]),
        ({"b": 6}, {"a": 4}, [("a", ABSENT, 4), ("b", 6, ABSENT)]),
        ({"a": None}, {}, [("a", None, ABSENT)]),
        ({"n": None}, {"n": {"x": 1}}, [("n", None, {"x": 1})]),
        ({"n": {}}, {"n": {"x": 1}}, [("n.x", ABSENT, 1)]),
    ],
)
def test_differences_name_every_field_that_differs(old: Any, new: Any, expected: list[Any]) -> None:
    assert list(differences(old, new)) == expected
    assert str(ABSENT) == "absent"
