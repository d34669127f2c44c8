"""Row F24: doubtful lists of classes are refused."""

import pytest

from yt8m_assets.data.records.vocabulary import load_segment_classes, load_vocabulary
from yt8m_assets.errors import MissingDataError, VocabularyError


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"3\n7\n", "line 1: expected the header 'Index'"),
        (b"", "line 1: expected the header 'Index'"),
        (b"Index\n", "names no class"),
        (b"Index\n3\n7\n3\n", "line 4: class 3 stands already in line 2"),
        (b"Index\n3\nseven\n", "line 3: expected a class number, got 'seven'"),
        (b"Index\n3\n-7\n", "line 3: expected a class number"),
        (b"Index\n3\n\n7\n", "line 3: expected a class number, got ''"),
        (b"Index\n" + b"3" * 12, "line 2: expected a class number"),
        (b"Index\n" + b"3" * 5000, "line 2: expected a class number"),
        (b"Index\n3.0\n", "line 2: expected a class number"),
        ("Index\n\u0663\n".encode(), "line 2: expected a class number"),
        (b"Index\n\xff\n", "not UTF-8 at byte 6"),
    ],
)
def test_f24_a_doubtful_list_of_classes_is_refused(tmp_path, content, reason):
    path = tmp_path / "segment_label_ids.csv"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=reason):
        load_segment_classes(str(path))


def test_f24_marks_and_line_ends_do_not_matter_and_the_order_is_kept(tmp_path):
    path = tmp_path / "segment_label_ids.csv"
    for content in (b"\xef\xbb\xbfIndex\r\n7\r\n3\r\n", b"Index\n7\n3", b"Index\n7\n3\n\n"):
        path.write_bytes(content)
        assert load_segment_classes(str(path)).tolist() == [7, 3]
    with pytest.raises(VocabularyError, match="line 2: class 7 lies outside the vocabulary of 5"):
        load_segment_classes(str(path), num_classes=5)
    with pytest.raises(MissingDataError, match="no such vocabulary file"):
        load_segment_classes(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Index,TrainVideoCount\n0,5\n", "the column Name is missing"),
        ("Index,Name\n0,a\n0,b\n", "line 3: class 0 stands already in line 2"),
        ("Index,Name\n0,a,b\n", "line 2: 3 columns, the header has 2"),
        (f"Index,TrainVideoCount,Name\n0,{'9' * 5000},a\n", "TrainVideoCount is '9999"),
        ("Index,TrainVideoCount,Name\n0,many,a\n", "TrainVideoCount is 'many'"),
        ('Index,Name\n0,"a\n', "not CSV"),
        ("Index,Name\n", "names no class"),
        ("Index,Name\n0,a\n\n1,b\n", "line 3: is empty, and rows follow"),
        ("Index,Name\n0,a\n ,\n", "line 3: expected a class number"),
    ],
)
def test_f24_a_doubtful_vocabulary_is_refused(tmp_path, content, reason):
    path = tmp_path / "vocabulary.csv"
    path.write_text(content)
    with pytest.raises(VocabularyError, match=reason):
        load_vocabulary(str(path))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n"])
def test_f24_empty_lines_at_the_end_of_a_vocabulary_do_not_matter(tmp_path, end):
    path = tmp_path / "vocabulary.csv"
    path.write_bytes(b"Index,Name\n7,a" + end.encode())
    assert [row.name for row in load_vocabulary(str(path)).values()] == ["a"]
