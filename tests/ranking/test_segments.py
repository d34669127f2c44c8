"""The segment table: canonical order, names, look-up."""

import numpy as np
import pytest

from tests.ranking.streaming import table_of
from yt8m_assets.errors import DataError
from yt8m_assets.ranking.segments import Segments, split_segment_id


def test_a_table_is_the_same_whatever_the_order_of_the_videos():
    first, first_rows = table_of({"bbbb": [0, 5], "aaaa": [0, 5, 10], "-ccc": [0]})
    second, second_rows = table_of({"-ccc": [0], "aaaa": [0, 5, 10], "bbbb": [0, 5]})

    assert first.same_as(second)
    assert first.ids().tolist() == ["-ccc:0", "aaaa:0", "aaaa:5", "aaaa:10", "bbbb:0", "bbbb:5"]
    assert np.concatenate(first_rows).tolist() == [4, 5, 1, 2, 3, 0]
    assert np.concatenate(second_rows).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_video_that_comes_twice_is_refused_by_name():
    with pytest.raises(DataError, match="'aaaa' occurs more than once"):
        Segments.sorted(["aaaa", "aaaa"], np.array([0, 1]), np.array([0, 5]))


def test_a_video_without_segments_is_not_in_the_table():
    segments, _ = table_of({"aaaa": [], "bbbb": [0]})
    assert segments.video_ids.tolist() == ["bbbb"]
    assert segments.video.tolist() == [0]


def test_an_empty_table_has_no_names():
    segments, rows = table_of({})
    assert len(segments) == 0
    assert segments.ids().tolist() == []
    assert rows == []
    assert segments.find(np.array(["aaaa"]), np.array([0]), np.array([0])).tolist() == [-1]


def test_find_tells_present_from_absent_segments():
    segments, _ = table_of({"aaaa": [0, 5], "cccc": [0]})
    found = segments.find(
        np.array(["aaaa", "bbbb", "cccc", "zzzz"]), np.array([0, 0, 1, 2, 3]), np.array([5, 10, 0, 0, 0])
    )
    assert found.tolist() == [1, -1, -1, 2, -1]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"video_ids": ["b", "a"], "video": [0, 1], "start": [0, 0]}, "not strictly ascending at 'a'"),
        ({"video_ids": ["a", "b"], "video": [0, 0], "start": [0, 5]}, "each used"),
        ({"video_ids": ["a"], "video": [0, 0], "start": [5, 0]}, "repeated at a:0"),
        ({"video_ids": ["a"], "video": [0, 0], "start": [5, 5]}, "repeated at a:5"),
        ({"video_ids": ["a"], "video": [0], "start": [0, 5]}, "videos for"),
    ],
)
def test_a_table_that_is_not_canonical_is_refused(fields, complaint):
    with pytest.raises(DataError, match=complaint):
        Segments(**{name: np.array(values) for name, values in fields.items()})


@pytest.mark.parametrize("name", ["", "abcd", ":5", "abcd:", "abcd:-5", "abcd:5x", "abcd:" + "9" * 5000])
def test_what_is_not_a_segment_id_is_refused(name):
    with pytest.raises(DataError, match="expected video_id:start"):
        split_segment_id(name)


def test_a_segment_id_splits_at_its_last_colon():
    assert split_segment_id("ab:cd:15") == ("ab:cd", 15)
