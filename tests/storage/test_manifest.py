import json
from typing import Any

import pytest

from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.storage import Manifest
from yt8m_assets.storage.manifest import ABSENT, differences, sha256_text


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


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {"a": {"size": 1}}},
        {"files": {"a": {"size": "1", "sha256": "0"}}},
        {"generation": "1"},
        {"folder": 3},
        {"metadata": {"map": float("nan")}},
        {"colour": 1},
    ],
)
def test_what_fits_its_checksum_and_is_no_manifest_is_refused_by_name(changes: dict[str, Any]) -> None:
    sound = Manifest(key="k", generation=1, folder="000001-a", fingerprint="f", digest="d", files={})
    values = json.loads(sound.to_bytes()) | changes
    del values["checksum"]
    for given in (values, {name: value for name, value in values.items() if name != "digest"}):
        checksum = sha256_text(json.dumps(given, sort_keys=True, separators=(",", ":")))
        with pytest.raises(CorruptArtifactError, match="here: not a manifest"):
            Manifest.from_bytes(json.dumps({**given, "checksum": checksum}).encode(), "here")


def test_a_manifest_that_is_nested_without_end_is_refused() -> None:
    with pytest.raises(CorruptArtifactError, match="not a manifest"):
        Manifest.from_bytes(b"[" * 100_000, "here")
