"""Rankings in memory and on disk."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yt8m_assets.errors import DataError
from yt8m_assets.ranking.files import Ranking, RankingReader, RankingWriter, Segments, read_ranking, write_ranking

LISTS = {5: ["abcd:5", "abcd:0", "zzzz:10"], 3: ["zzzz:10"], 9: [], 11: ["abcd:0", "zzzz:10"]}


def test_a_ranking_of_lists_gives_the_lists_back_with_classes_ascending():
    ranking = Ranking.from_dict(LISTS)
    assert ranking.to_dict() == LISTS
    assert ranking.class_ids.tolist() == [3, 5, 9, 11]
    assert ranking.entries(5)[1].tolist() == pytest.approx([1, 2 / 3, 1 / 3])


def test_a_class_that_is_not_ranked_has_no_entries():
    segment, score = Ranking.from_dict(LISTS).entries(4)
    assert segment.size == score.size == 0


def test_a_ranking_survives_the_disk(tmp_path):
    ranking = Ranking.from_dict(LISTS)
    files = write_ranking(ranking, tmp_path)
    again = read_ranking(tmp_path)

    assert sorted(path.name for path in files) == ["ranking.parquet", "segments.parquet"]
    assert again.to_dict() == LISTS
    assert again.score.tobytes() == ranking.score.tobytes()
    assert again.segments.same_as(ranking.segments)


def test_equal_rankings_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_ranking(Ranking.from_dict(dict(reversed(LISTS.items()))), tmp_path / name)
    for name in ("ranking.parquet", "segments.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_each_column_is_kept_in_the_encoding_that_suits_it(tmp_path):
    """Few classes, scores that fall slowly; statistics, by which a reader finds a class, of the classes alone."""
    write_ranking(Ranking.from_dict(LISTS), tmp_path)
    group = pq.ParquetFile(tmp_path / "ranking.parquet").metadata.row_group(0)
    class_id, segment, score = (group.column(number) for number in range(3))
    assert [column.has_dictionary_page for column in (class_id, segment, score)] == [True, False, False]
    assert [column.is_stats_set for column in (class_id, segment, score)] == [True, False, False]
    assert "BYTE_STREAM_SPLIT" in score.encodings
    assert {column.compression for column in (class_id, segment, score)} == {"ZSTD"}


def test_two_lines_of_pandas_read_a_ranking(tmp_path):
    write_ranking(Ranking.from_dict(LISTS), tmp_path)
    ranking = pd.read_parquet(tmp_path / "ranking.parquet")
    names = pd.read_parquet(tmp_path / "segments.parquet").loc[ranking.segment].reset_index()

    assert list(ranking.columns) == ["class_id", "segment", "score"]
    assert ranking.class_id.tolist() == [3, 5, 5, 5, 11, 11]
    assert (names.video_id + ":" + names.start.astype(str)).tolist()[1:4] == LISTS[5]


def test_a_reader_gives_one_class_without_the_rest(tmp_path):
    write_ranking(Ranking.from_dict(LISTS), tmp_path)
    reader = RankingReader(tmp_path)
    names = reader.segments.ids()
    assert reader.class_ids.tolist() == [3, 5, 9, 11]
    assert names[reader.entries(11)[0]].tolist() == LISTS[11]
    assert reader.entries(9)[0].size == 0


def test_a_writer_refuses_classes_out_of_order_and_segments_outside_the_table(tmp_path):
    ranking = Ranking.from_dict(LISTS)
    with (
        pytest.raises(DataError, match="class 5 does not come next"),
        RankingWriter(tmp_path, ranking.class_ids, ranking.segments) as writer,
    ):
        writer.write(5, *ranking.entries(5))
    with (
        pytest.raises(DataError, match=r"outside 0\.\.2"),
        RankingWriter(tmp_path, ranking.class_ids, ranking.segments) as writer,
    ):
        writer.write(3, np.array([3], np.int32), np.array([1.0], np.float32))


def test_a_writer_that_was_not_given_every_class_complains(tmp_path):
    ranking = Ranking.from_dict(LISTS)
    with (
        pytest.raises(DataError, match="1 of 4 classes"),
        RankingWriter(tmp_path, ranking.class_ids, ranking.segments) as writer,
    ):
        writer.write(3, *ranking.entries(3))


@pytest.mark.parametrize("damage", ["foreign", "truncated"])
def test_what_is_not_a_ranking_is_named(tmp_path, damage):
    write_ranking(Ranking.from_dict(LISTS), tmp_path)
    path = tmp_path / "ranking.parquet"
    if damage == "foreign":
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a ranking"):
        read_ranking(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("class_ids", [3, 3, 9, 11], "strictly ascending"),
        ("class_ids", [3, 9, 5, 11], "strictly ascending"),
        ("offsets", [0, 1, 4, 3, 6], "do not delimit"),
        ("offsets", [1, 1, 4, 4, 6], "do not delimit"),
        ("offsets", [0, 1, 4, 4], "do not delimit"),
        ("segment", [0, 1], "2 segments, 6 scores"),
        ("segment", [0, 1, 2, 0, 1, 3], "outside the table of 3"),
        ("segment", [0, 1, 2, 0, 1, -1], "outside the table of 3"),
    ],
)
def test_contradicting_arrays_are_refused(field, value, complaint):
    ranking = Ranking.from_dict(LISTS)
    fields = {name: getattr(ranking, name) for name in ("class_ids", "offsets", "segment", "score", "segments")}
    with pytest.raises(DataError, match=complaint):
        Ranking(**{**fields, field: np.array(value)})


def test_a_segment_listed_twice_in_a_class_is_refused():
    with pytest.raises(DataError, match="class 3: a segment is listed more than once"):
        Ranking.from_dict({3: ["abcd:0", "abcd:0"]})


def test_a_ranking_of_no_class_has_no_entries():
    empty = Ranking.from_entries(
        [], Segments.sorted(np.array([], "S11"), np.array([], np.int64), np.array([], np.int64))[0]
    )
    assert [len(column) for column in (empty.class_ids, empty.segment, empty.score)] == [0, 0, 0]
    assert empty.offsets.tolist() == [0]
