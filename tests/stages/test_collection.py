"""What `yt8m gc` may take: what dropped models left behind, and never what something that stays was made from."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_recipe
from yt8m_assets.errors import CorruptArtifactError
from yt8m_assets.stages.collection import find_dropped, remove
from yt8m_assets.storage import ArtifactStore


def put(store: ArtifactStore, key: str, content: str, *parents: str) -> None:
    digests = {parent: store.require(parent).digest for parent in parents}
    with store.publish(key, fingerprint=content, parents=digests) as publication:
        (publication.path / "file").write_text(content)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """A submission of models one and gone; then more attempts at gone, and a model that nothing was made from."""
    store = ArtifactStore(str(tmp_path / "store"), tmp_path / "cache")
    for key in ("one", "gone"):
        put(store, f"finetuned_model/{key}", key)
        put(store, f"test_predictions/{key}/shift+0", key, f"finetuned_model/{key}")
        put(store, f"test_ranking/{key}", key, f"test_predictions/{key}/shift+0")
    put(store, "submission", "first", "test_ranking/one", "test_ranking/gone")
    put(store, "finetuned_model/gone", "another")
    put(store, "test_predictions/gone/shift+1", "another", "finetuned_model/gone")
    put(store, "finetuned_model/never", "never")
    put(store, "checkpoints/finetuned_model/never/step-00000001", "half")
    put(store, "checkpoints/finetuned_model/one/step-00000001", "half")
    return store


RECIPE = replace(tiny_recipe(), models=(tiny_model("one", (0,)),))


def test_what_dropped_models_left_behind_goes_and_what_a_submission_was_made_from_stays(store: ArtifactStore) -> None:
    found = find_dropped([RECIPE], store)
    assert [(one.key, one.generation) for one in found] == [
        ("checkpoints/finetuned_model/never/step-00000001", 1),
        ("finetuned_model/gone", 2),
        ("finetuned_model/never", 1),
        ("test_predictions/gone/shift+1", 1),
    ]
    assert sum(one.size for one in found) == len("half") + len("another") + len("never") + len("another")
    assert remove(found, store) == []
    assert find_dropped([RECIPE], store) == []
    assert store.numbers("finetuned_model/never") == []
    assert not (Path(store.root_uri) / "finetuned_model" / "never").exists()
    for key in ("submission", "finetuned_model/gone", "test_predictions/gone/shift+0", "test_ranking/gone"):
        store.fetch(store.require(key))
    assert store.numbers("checkpoints/finetuned_model/one/step-00000001") == [1]


def test_another_recipe_keeps_its_models(store: ArtifactStore) -> None:
    other = replace(RECIPE, models=(tiny_model("never", (0,)), tiny_model("gone", (0,))))
    assert find_dropped([RECIPE, other], store) == []


def test_what_is_being_written_stays_and_is_named(store: ArtifactStore) -> None:
    found = find_dropped([RECIPE], store)
    with store.backend.lock("finetuned_model/gone"):
        assert [one.key for one in remove(found, store)] == ["finetuned_model/gone"]
    assert store.numbers("finetuned_model/gone") == [1, 2]


def test_nothing_goes_while_a_manifest_cannot_be_read(store: ArtifactStore) -> None:
    (Path(store.root_uri) / "submission" / "manifest-000001.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match="submission"):
        find_dropped([RECIPE], store)
