import pytest

from yt8m_assets.data.dataset.folds import original_holdout, original_rank, seeded_holdout
from yt8m_assets.errors import DataError

ORDER = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLOUD = [f"gs://b/validate{first}{second}.tfrecord" for first in ORDER for second in ORDER]
LOCAL = [f"/d/validate{number:04d}.tfrecord" for number in range(3844)]


def test_cloud_names_follow_the_original():
    held = original_holdout(CLOUD)
    assert len(held) == 300
    names = {uri.removeprefix("gs://b/validate").removesuffix(".tfrecord") for uri in held}
    assert names == {a + b for b in "0123" for a in ORDER} | {a + "4" for a in ORDER[: ORDER.index("P") + 1]}
    assert [original_rank(f"validate{name}.tfrecord") for name in ("00", "10", "Z0", "01", "ZZ")] == [
        0,
        1,
        61,
        62,
        3843,
    ]


def test_local_names_follow_the_original():
    assert original_holdout(LOCAL) == set(LOCAL[:300])


def test_train_and_test_shards_are_never_held_out():
    assert original_holdout(["train0001.tfrecord", "test00.tfrecord", "validate0000.tfrecord"]) == {
        "validate0000.tfrecord"
    }
    assert original_rank("validate000.tfrecord") is None


def test_mixed_names_are_fine_unless_a_shard_is_there_under_both():
    assert original_holdout([CLOUD[0], LOCAL[1], LOCAL[400]], 300) == {CLOUD[0], LOCAL[1]}
    with pytest.raises(DataError, match="are one shard under a local and a cloud name"):
        original_holdout([CLOUD[0], LOCAL[0]])


def test_the_seeded_rule_goes_by_name_and_is_never_all_or_nothing():
    uris = [f"a/s{number}" for number in range(9)]
    held = seeded_holdout(uris, 1 / 3, seed=7)
    assert len(held) == 3
    assert {uri[2:] for uri in held} == {
        uri[2:] for uri in seeded_holdout([f"b/s{n}" for n in range(9)][::-1], 1 / 3, 7)
    }
    assert held != seeded_holdout(uris, 1 / 3, seed=8)
    assert [len(seeded_holdout(uris[:2], fraction, 0)) for fraction in (0.01, 0.99)] == [1, 1]
    with pytest.raises(DataError, match="at least two shards"):
        seeded_holdout(uris[:1], 0.5, 0)
