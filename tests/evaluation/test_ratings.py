"""Ratings: arrays, dicts, CSV."""

from pathlib import Path

import pytest

from tests.ranking.streaming import table_of
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import Ratings

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics" / "metrics_segment_labels.csv"
PAIRS = {("bbbb:0", 7): 1, ("aaaa:5", 7): 0, ("aaaa:10", 3): 1, ("aaaa:5", 3): 0}


def test_a_dict_comes_back_sorted_by_class_video_and_start():
    ratings = Ratings.from_dict(PAIRS)
    assert list(ratings.to_dict()) == [("aaaa:5", 3), ("aaaa:10", 3), ("aaaa:5", 7), ("bbbb:0", 7)]
    assert ratings.to_dict() == PAIRS
    assert len(ratings) == 4
    assert ratings.positive.tolist() == [False, True, False, True]


def test_the_original_s_label_file_is_read():
    lines = GOLDEN.read_text().splitlines()
    expected = {}
    for line in lines:
        name, class_id, score = line.split(",")
        expected[name, int(class_id)] = int(float(score))
    assert Ratings.read_csv(GOLDEN).to_dict() == expected


@pytest.mark.parametrize("header", ["", "segment_id,class_id,score\n"])
def test_a_file_is_read_in_any_order_with_or_without_its_header(tmp_path, header):
    lines = [f"{name},{class_id},{score}\n" for (name, class_id), score in PAIRS.items()]
    (tmp_path / "a.csv").write_text(header + "".join(lines))
    (tmp_path / "b.csv").write_text(header + "".join(reversed(lines)))
    assert Ratings.read_csv(tmp_path / "a.csv").to_dict() == Ratings.read_csv(tmp_path / "b.csv").to_dict() == PAIRS


@pytest.mark.parametrize(
    "line",
    ["aaaa,3,1", "aaaa:5,3", "aaaa:5,x,1", "aaaa:5,3,0.5", "aaaa:5,3,nan", "aaaa:5,-3,1", ""]
    + [f"aaaa:5,{class_id},1" for class_id in ("9" * 12, "9" * 5000, "\u0663")],
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "ratings.csv"
    path.write_text(f"segment_id,class_id,score\naaaa:0,3,1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ratings\.csv, line 3"):
        Ratings.read_csv(path)


def test_a_cell_beyond_all_measure_is_no_csv_of_ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("aaaa:0,3,1\naaaa:5," + "3" * 200_000 + ",1\n")
    with pytest.raises(DataError, match=r"ratings\.csv: not a CSV of ratings: field larger"):
        Ratings.read_csv(path)


def test_a_pair_may_repeat_itself_but_not_contradict_itself():
    once = Ratings.from_arrays(["aaaa"], [0, 0, 0], [5, 0, 5], [3, 3, 3], [1, 0, 1])
    assert once.to_dict() == {("aaaa:0", 3): 0, ("aaaa:5", 3): 1}
    with pytest.raises(DataError, match="aaaa:5, class 3 is rated both 0 and 1"):
        Ratings.from_arrays(["aaaa"], [0, 0], [5, 5], [3, 3], [1, 0])


def test_a_rating_other_than_0_and_1_is_refused():
    with pytest.raises(DataError, match=r"aaaa:5, class 3 is 2\.0"):
        Ratings.from_arrays(["aaaa"], [0], [5], [3], [2])


def test_no_ratings_are_no_rows(tmp_path):
    (tmp_path / "none.csv").write_text("segment_id,class_id,score\n")
    assert len(Ratings.read_csv(tmp_path / "none.csv")) == 0


def test_rows_of_a_segment_table_are_found():
    segments, _ = table_of({"bbbb": [0], "aaaa": [10, 5]})
    ratings = Ratings.from_dict({**PAIRS, ("cccc:0", 9): 1})
    assert ratings.rows_in(segments).tolist() == [0, 1, 0, 2, -1]
