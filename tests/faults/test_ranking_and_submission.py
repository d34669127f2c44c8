"""F26, F27, F44, F45: classes without positives, ties and NaN, formula injection, invalid submissions."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ranking.streaming import streamed
from yt8m_assets.ensemble import SearchConfig, fuse, search_weights
from yt8m_assets.errors import DataError, NonFiniteError, SubmissionError
from yt8m_assets.evaluation import Ratings, bootstrap_map, mean_average_precision_at_k, ranking_map
from yt8m_assets.ranking.files import Ranking, write_ranking
from yt8m_assets.submission import validate_submission, write_submission

CLASSES = [3, 7]
VALID = "Class,Segments\n3,abcd:0 wxyz:5\n7,abcd:10\n"


def test_f26_a_class_without_positives_is_left_out_of_the_mean_and_reported():
    lists = {1: ["aaaa:0", "aaaa:5"], 2: ["aaaa:5", "aaaa:0"], 4: ["aaaa:0"]}
    pairs = {("aaaa:0", 1): 1, ("aaaa:5", 1): 0, ("aaaa:0", 2): 0, ("aaaa:5", 2): 0}
    for found in (
        mean_average_precision_at_k(lists, pairs),
        ranking_map(Ranking.from_dict(lists), Ratings.from_dict(pairs)),
    ):
        assert found.per_class == {1: 1.0}
        assert found.map == 1.0
        assert found.without_positives == (2, 4)


def test_f26_all_negative_ratings_have_no_map_and_nothing_is_made_of_them():
    lists = {1: ["aaaa:0", "aaaa:5"]}
    ratings = Ratings.from_dict({("aaaa:0", 1): 0, ("aaaa:5", 1): 0})
    ranking = Ranking.from_dict(lists)
    found = ranking_map(ranking, ratings)
    assert np.isnan(found.map)
    assert found.without_positives == (1,)
    with pytest.raises(DataError, match="MAP is undefined"):
        bootstrap_map(ranking, ratings)
    with pytest.raises(DataError, match="no class with a positive"):
        search_weights({"a": ranking}, ratings, config=SearchConfig())


def ranked(order: list[int], folder: Path, k: int) -> bytes:
    """Rank 12 videos of 400 coarsely rounded scores in an order of arrival; the bytes of both files."""
    scores = {f"v{n:03d}": np.random.default_rng(n).random((400, 2), np.float32).round(1) for n in order}
    best = streamed(scores, k, np.array([1, 2]))
    folder.mkdir()
    return b"".join(path.read_bytes() for path in write_ranking(best.finish(), folder))


@pytest.mark.parametrize("k", [5, 333, 100_000])
def test_f27_ties_give_the_same_bytes_in_any_order_of_arrival(tmp_path, k):
    generator = np.random.default_rng(0)
    first = ranked(list(range(12)), tmp_path / "0", k)
    for number in range(1, 5):
        assert ranked(generator.permutation(12).tolist(), tmp_path / str(number), k) == first


def test_f27_fusion_does_not_depend_on_the_order_of_arrival(tmp_path):
    fused = []
    for order in (range(6), range(5, -1, -1)):
        parts = [
            {f"v{n:03d}": np.random.default_rng((n, shift)).random((40, 1), np.float32).round(1) for n in order}
            for shift in range(2)
        ]
        best = [streamed(scores, 50, np.array([1])) for scores in parts]
        fused.append(fuse([part.finish() for part in best], [1, 1], 3.7, 50))
    assert fused[0].to_dict() == fused[1].to_dict()
    assert fused[0].score.tobytes() == fused[1].score.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_f27_scores_that_are_no_numbers_are_refused_by_class_and_segment(value):
    scores = np.zeros((3, 2), np.float32)
    scores[2, 1] = value
    with pytest.raises(NonFiniteError, match="class 5 for segment badv:10"):
        streamed({"badv": scores}, 10, np.array([11, 5]))


@settings(max_examples=150, deadline=None)
@given(name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=14), start=st.integers(-10, 400))
def test_f44_no_cell_can_start_a_formula_or_break_the_file(tmp_path_factory, name, start):
    path = tmp_path_factory.mktemp("f44") / "submission.csv"
    try:
        write_submission({3: [f"{name}:{start}"]}, path, [3])
    except SubmissionError:
        assert not path.exists()
        return
    content = path.read_bytes()
    assert re.fullmatch(rb"Class,Segments\n3,[A-Za-z0-9_-]{4,11}:(0|[1-9][0-9]*)\n", content)
    assert content == f"Class,Segments\n3,{name}:{start}\n".encode()  # never escaped
    assert validate_submission(path, [3]) == []


@pytest.mark.parametrize(
    "name", ["=1+1", "@SUM", "+abcd", "(abc)", "ab|cd", 'ab"cd', "ab,cd", "ab\ncd", "ab cd", "\u0430bcd"]
)
def test_f44_ids_that_could_do_harm_are_not_written(tmp_path, name):
    with pytest.raises(SubmissionError, match="legal"):
        write_submission({3: [f"{name}:0"]}, tmp_path / "submission.csv", [3])
    assert not (tmp_path / "submission.csv").exists()


def test_f44_a_leading_minus_is_legal_and_written_as_it_is(tmp_path):
    write_submission({3: ["-abc:0"]}, tmp_path / "submission.csv", [3])
    assert (tmp_path / "submission.csv").read_text() == "Class,Segments\n3,-abc:0\n"


FAULTS = {
    "starter prose header": (VALID.replace("Class,Segments", "Class Id,Segment Ids"), 1, "the header is"),
    "no header": (VALID.removeprefix("Class,Segments\n"), 1, "the header is"),
    "byte-order mark": ("\ufeff" + VALID, 1, "byte-order mark"),
    "carriage returns": (VALID.replace("\n", "\r\n"), 1, "end in"),
    "carriage return in a line": (VALID.replace("wxyz:5\n", "wxyz:5\r\n"), 2, "malformed segment id 'wxyz:5\\r'"),
    "empty file": ("", 1, "the file is empty"),
    "unknown class": (VALID + "9,abcd:0\n", 4, "unknown class 9"),
    "missing class": (VALID.replace("7,abcd:10\n", ""), 0, "class 7 is missing"),
    "repeated class": (VALID + "3,abcd:0\n", 4, "class 3 is repeated (first in line 2)"),
    "class with a leading zero": (VALID.replace("7,", "07,"), 3, "'07' is not a class number"),
    "negative class": (VALID + "-3,abcd:0\n", 4, "'-3' is not a class number"),
    "short id": (VALID.replace("wxyz:5", "wxy:5"), 2, "malformed segment id 'wxy:5'"),
    "long id": (VALID.replace("wxyz:5", "wxyzwxyzwxyz:5"), 2, "malformed segment id"),
    "id with a formula": (VALID.replace("wxyz:5", "=wxy:5"), 2, "malformed segment id '=wxy:5'"),
    "id without a start": (VALID.replace("wxyz:5", "wxyz"), 2, "malformed segment id 'wxyz'"),
    "id of other letters": (VALID.replace("wxyz", "wxy\u0437"), 2, "malformed segment id"),
    "negative start": (VALID.replace("wxyz:5", "wxyz:-5"), 2, "malformed segment id 'wxyz:-5'"),
    "start with a leading zero": (VALID.replace("wxyz:5", "wxyz:05"), 2, "malformed segment id 'wxyz:05'"),
    "start of a thousand digits": (VALID.replace("wxyz:5", "wxyz:" + "5" * 9999), 2, "malformed segment id"),
    "start off the grid": (VALID.replace("wxyz:5", "wxyz:7"), 2, "start of 'wxyz:7' is not a multiple of 5"),
    "repeated segment": (VALID.replace("wxyz:5", "abcd:0"), 2, "segment 'abcd:0' is repeated"),
    "two spaces": (VALID.replace(" ", "  "), 2, "two spaces"),
    "space at the end": (VALID.replace("wxyz:5", "wxyz:5 "), 2, "a space ends the line"),
    "no segments": (VALID.replace("7,abcd:10", "7,"), 3, "no segments are listed"),
    "no comma": (VALID.replace("7,abcd:10", "7"), 3, "no segments are listed"),
    "empty line": (VALID + "\n", 4, "the line is empty"),
    "quoted cell": (VALID.replace("7,abcd:10", '7,"abcd:10"'), 3, "malformed segment id"),
    "truncated last line": (VALID[:-1], 3, "the file is truncated"),
    "truncated within an id": (VALID[:-2], 3, "the file is truncated"),
    "zero bytes": (VALID.replace("wxyz", "wx\0z"), 2, "malformed segment id"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_f45_every_fault_is_found_on_its_line(tmp_path, fault):
    content, line, text = FAULTS[fault]
    (tmp_path / "submission.csv").write_bytes(content.encode())
    problems = validate_submission(tmp_path / "submission.csv", CLASSES)
    assert any(p.line == line and text.replace("\\\\", "\\") in p.text.replace("\\\\", "\\") for p in problems), (
        problems
    )


def test_f45_more_than_the_allowed_number_of_segments(tmp_path):
    path = tmp_path / "submission.csv"
    ids = " ".join(f"v{number:06d}:0" for number in range(100_001))
    path.write_text(f"Class,Segments\n3,{ids}\n7,abcd:0\n")
    problems = validate_submission(path, CLASSES)
    assert [(p.line, p.text) for p in problems] == [(2, "100001 segments are listed, at most 100000 are allowed")]


def test_f45_unknown_videos_and_starts_after_the_end(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text(VALID)
    assert [(p.line, p.text) for p in validate_submission(path, CLASSES, {"abcd"})] == [
        (2, "unknown video 'wxyz' in 'wxyz:5'")
    ]
    assert [(p.line, p.text) for p in validate_submission(path, CLASSES, {"abcd": 10, "wxyz": 6})] == [
        (3, "'abcd:10' starts after the video's end (10 s)")
    ]


def test_f45_a_file_cut_at_any_byte_is_never_valid(tmp_path):
    path = tmp_path / "submission.csv"
    for cut in range(len(VALID)):
        path.write_bytes(VALID.encode()[:cut])
        assert validate_submission(path, CLASSES), cut


def test_f45_the_whole_valid_file_has_no_fault(tmp_path):
    (tmp_path / "submission.csv").write_text(VALID)
    assert validate_submission(tmp_path / "submission.csv", CLASSES, {"abcd": 15, "wxyz": 6}) == []
