import re
from itertools import pairwise

import numpy as np
import pytest

from yt8m_assets.data.simulation import SPLITS, SimulationConfig
from yt8m_assets.data.simulation.scripts import (
    Activity,
    label_only_scripts,
    shard_scripts,
    shard_sizes,
    video_id,
)
from yt8m_assets.data.simulation.world import build_world

CONFIG = SimulationConfig()
WORLD = build_world(CONFIG)


@pytest.fixture(scope="module")
def scripts():
    return list(label_only_scripts(CONFIG, WORLD, 3000))


def test_about_as_many_ratings_are_positive_as_in_the_real_set(scripts):
    scores = [score for s in scripts for _, _, score in s.ratings]
    assert abs(np.mean(scores) - 132_442 / 237_788) < 0.015


def test_ratings_are_of_published_rated_labels_and_whole_segments(scripts):
    for script in scripts[:500]:
        per_class = {}
        for start, class_id, score in script.ratings:
            assert start % 5 == 0
            assert start + 5 <= script.num_seconds
            assert class_id in script.labels
            assert class_id in WORLD.rated_classes
            assert score in (0, 1)
            per_class.setdefault(class_id, set()).add(start)
        assert set(per_class) == set(script.labels) & set(WORLD.rated_classes)
        assert all(len(starts) == CONFIG.num_ratings for starts in per_class.values())


def test_labels_come_in_groups_with_some_missing_and_some_spurious(scripts):
    true = [{a.class_id for a in s.activities} for s in scripts]
    kept = sum(len(t & set(s.labels)) for t, s in zip(true, scripts, strict=True)) / sum(map(len, true))
    spurious = np.mean([len(set(s.labels) - t) for t, s in zip(true, scripts, strict=True)])
    same_group = [
        np.mean([WORLD.groups[b] == WORLD.groups[a] for b in t if b != a]) for t in true for a in t if len(t) > 1
    ]
    assert abs(kept - 0.9) < 0.01
    assert abs(spurious - 0.15) < 0.03
    assert 0.3 < np.mean(same_group) < 0.6  # one class in twelve by chance
    assert 2.7 < np.mean([len(t) for t in true]) < 3.0


def test_intervals_keep_their_lengths_and_gaps_and_touch_the_video(scripts):
    for script in scripts[:500]:
        for activity in script.activities:
            assert 1 <= len(activity.intervals) <= 3
            for start, end, gain in activity.intervals:
                assert 8 <= end - start <= 30
                assert start < script.num_seconds
                assert end > 0
                assert gain in CONFIG.gains
            assert all(b[0] - a[1] >= 5 for a, b in pairwise(activity.intervals))


def test_edges_of_a_video_are_about_as_active_as_its_middle(scripts):
    """Intervals kept inside the video would make them far less so; gaps between intervals make them a bit more."""
    ends = [a.profile(0, 5) > 0 for s in scripts for a in s.activities]
    middles = [a.profile(s.num_seconds // 2, s.num_seconds // 2 + 5) > 0 for s in scripts for a in s.activities]
    assert 0.9 < np.mean(ends) / np.mean(middles) < 1.3


def test_profile_is_the_gain_of_each_second():
    activity = Activity(class_id=3, mode=0, intervals=((-4, 3, 0.75), (8, 14, 1.25)))
    np.testing.assert_array_equal(activity.profile(0, 10), [0.75] * 3 + [0.0] * 5 + [1.25] * 2)
    np.testing.assert_array_equal(activity.profile(-6, 0), [0.0] * 2 + [0.75] * 4)
    np.testing.assert_array_equal(activity.profile(20, 25), np.zeros(5))


def test_ids_are_unique_over_all_splits_and_look_real():
    ids = [video_id(CONFIG, n) for n in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{4,11}", i) for i in ids)
    huge = SimulationConfig(num_train_videos=10**9)
    assert len({video_id(huge, n) for n in range(1000)}) == 1000
    tiny = SimulationConfig(num_train_videos=9, num_validate_videos=9, num_test_videos=9)
    seen = [
        script.video_id
        for split in SPLITS
        for shard in range(tiny.num_shards(split))
        for script, _ in shard_scripts(tiny, WORLD, split, shard)
    ]
    assert len(set(seen)) == 27


def test_shards_share_the_videos_evenly():
    config = SimulationConfig(num_test_videos=11, num_test_shards=3)
    assert shard_sizes(config, "test") == [4, 4, 3]


def switched(**changes):
    config = SimulationConfig(**changes)
    return list(label_only_scripts(config, build_world(config), 600))


def test_classes_that_occur_together_share_their_times():
    def share(scripts):
        times = [[tuple((a, b) for a, b, _ in x.intervals) for x in s.activities] for s in scripts]
        later = [(t, before) for one in times for t, before in ((one[i], one[:i]) for i in range(1, len(one)))]
        return np.mean([t in before for t, before in later])

    assert share(switched()) == 0
    assert abs(share(switched(together_probability=0.7)) - 0.7) < 0.05


def test_uniform_ratings_are_as_positive_as_their_video():
    """Otherwise more than half are, whatever the label's share of the video."""

    def shares(scripts):
        rows = []
        for script in scripts:
            for activity in script.activities:
                mine = [score for _, class_id, score in script.ratings if class_id == activity.class_id]
                if mine:
                    rows.append(((activity.profile(0, script.num_seconds) > 0).mean(), np.mean(mine)))
        return np.array(rows).T

    active, positive = shares(switched(uniform_ratings=True))
    assert abs(positive.mean() - active.mean()) < 0.04
    assert np.corrcoef(active, positive)[0, 1] > 0.6
    active, positive = shares(switched())
    assert positive.mean() > active.mean() + 0.2
