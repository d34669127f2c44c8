"""The submission: written, validated, scored."""

import random
from pathlib import Path

import numpy as np
import pytest

from yt8m_assets.errors import SubmissionError
from yt8m_assets.ranking.files import Ranking, RankingReader, write_ranking
from yt8m_assets.ranking.fusion import FusedRanking
from yt8m_assets.submission import Problem, validate_submission, write_submission

CLASSES = [7, 3, 20]
LISTS = {3: ["abcd:0", "-_Z9:295"], 7: ["abcdefghijk:15", "abcd:5", "abcd:10"], 20: ["abcd:0"]}
TEXT = "Class,Segments\n7,abcdefghijk:15 abcd:5 abcd:10\n3,abcd:0 -_Z9:295\n20,abcd:0\n"


def problems_of(tmp_path: Path, content: str | bytes, *arguments, **options) -> list[tuple[int, str]]:
    path = tmp_path / "submission.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(p.line, p.text) for p in validate_submission(path, CLASSES, *arguments, **options)]


@pytest.mark.parametrize("form", ["dict", "ranking", "reader", "fusion"])
def test_every_form_of_a_ranking_is_written_in_the_given_order_of_classes(tmp_path, form):
    ranking = Ranking.from_dict(LISTS)
    write_ranking(ranking, tmp_path)
    forms = {
        "dict": LISTS,
        "ranking": ranking,
        "reader": RankingReader(tmp_path),
        "fusion": FusedRanking([ranking], [1.0], 3.0),
    }
    write_submission(forms[form], tmp_path / "submission.csv", CLASSES)
    assert (tmp_path / "submission.csv").read_text() == TEXT
    assert validate_submission(tmp_path / "submission.csv", CLASSES) == []


def test_only_the_first_k_are_written_and_only_the_rated_classes(tmp_path):
    for form in (LISTS, Ranking.from_dict(LISTS)):
        write_submission(form, tmp_path / "submission.csv", [3, 7], k=1)
        assert (tmp_path / "submission.csv").read_text() == "Class,Segments\n3,abcd:0\n7,abcdefghijk:15\n"


def test_a_large_random_ranking_comes_back(tmp_path):
    generator = np.random.default_rng(0)
    names = [f"v{number:0{3 + number % 8}d}:{start}" for number in range(50) for start in range(0, 300, 5)]
    lists = {c: generator.permutation(names)[: generator.integers(1, 3000)].tolist() for c in range(20)}
    write_submission(Ranking.from_dict(lists), tmp_path / "submission.csv", sorted(lists))
    lines = (tmp_path / "submission.csv").read_text().splitlines()[1:]
    assert {int(line.split(",")[0]): line.split(",")[1].split(" ") for line in lines} == lists


@pytest.mark.parametrize("form", [dict, Ranking.from_dict])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({20: []}, "class 20: the ranking holds no segment"),
        ({3: ["abc:0"]}, "'abc.*' is not a legal"),
        ({3: ["abcd:3"]}, "abcd:3"),
        ({3: ["=cmd:5"]}, "'=cmd.*' is not a legal"),
    ],
)
def test_what_would_be_invalid_is_not_written(tmp_path, form, change, complaint):
    with pytest.raises(SubmissionError, match=complaint):
        write_submission(form({**LISTS, **change}), tmp_path / "submission.csv", CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_repeated_class_is_not_written(tmp_path):
    path = tmp_path / "submission.csv"
    with pytest.raises(SubmissionError, match="class 8: the ranking holds no segment"):
        write_submission(LISTS, path, [3, 8])
    with pytest.raises(SubmissionError, match="every rated class once"):
        write_submission(LISTS, path, [3, 3])
    with pytest.raises(SubmissionError, match="class 3: a segment is listed more than once"):
        write_submission({3: ["abcd:0", "abcd:0"]}, path, [3])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    with pytest.raises(SubmissionError):
        write_submission(LISTS, path, [3, 8])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_a_valid_file_has_no_problem(tmp_path):
    assert problems_of(tmp_path, TEXT) == []
    assert problems_of(tmp_path, TEXT, {"abcd", "abcdefghijk", "-_Z9"}) == []
    assert problems_of(tmp_path, TEXT, {"abcd": 11, "abcdefghijk": 16, "-_Z9": 300}) == []


def test_several_faults_are_all_reported_each_with_its_line(tmp_path):
    content = "Class,Segments\n7,abcd:5 abcd:5 abcd:7\n9,abcd:0\n7,xy:0"
    assert problems_of(tmp_path, content) == [
        (2, "start of 'abcd:7' is not a multiple of 5"),
        (2, "segment 'abcd:5' is repeated"),
        (3, "unknown class 9"),
        (4, "malformed segment id 'xy:0'"),
        (4, "class 7 is repeated (first in line 2)"),
        (4, "the last line does not end: the file is truncated"),
        (0, "class 3 is missing"),
        (0, "class 20 is missing"),
    ]


def test_of_a_line_full_of_faults_the_first_are_listed(tmp_path):
    def found(count):
        return problems_of(
            tmp_path, TEXT.replace("3,abcd:0", "3," + " ".join(f"abcd:{5 * n + 1}" for n in range(count)))
        )

    assert [text for _, text in found(3)] == [f"start of 'abcd:{5 * n + 1}' is not a multiple of 5" for n in range(3)]
    assert len(found(11)) == 11
    assert len(found(50_000)) == 11
    assert found(50_000)[-1] == (3, "49990 more faults in this line")


def test_starts_beyond_the_end_of_a_video_are_found_where_lengths_are_known(tmp_path):
    lengths = {"abcd": 10, "abcdefghijk": 16, "-_Z9": 300}
    assert problems_of(tmp_path, TEXT, lengths) == [(2, "'abcd:10' starts after the video's end (10 s)")]


def test_a_line_taken_as_a_whole_has_the_faults_of_its_segments(tmp_path, monkeypatch):
    """Lines made of few ids, so that unknown, repeated and late ones are frequent, with and without the short cut."""
    draw = random.Random(5)
    known = {"abcd": 300, "abce": 5, "-_Z9": 60, "abcdefgh": 100, "abcdefghijk": 20}
    lines = []
    for _ in range(400):
        names = [*known, "abcf", "zzzzzzzzzzz"] if draw.random() < 0.3 else list(known)
        pairs = [(name, start) for name in names for start in range(0, known.get(name, 50) + 5 * draw.randint(0, 1), 5)]
        cells = [f"{name}:{start}" for name, start in draw.sample(pairs, draw.randint(1, 6))]
        cells += cells[:1] if draw.random() < 0.2 else []
        lines.append(f"{draw.choice(CLASSES)}," + " ".join(cells))
    content = "\n".join(["Class,Segments", *lines, ""])
    quick = problems_of(tmp_path, content, known)
    monkeypatch.setattr("yt8m_assets.submission._Known.holds_all", lambda self, cells: False)
    assert quick == problems_of(tmp_path, content, known)
    texts = " ".join(text for _, text in quick)
    assert all(word in texts for word in ("unknown video", "is repeated", "starts after"))


def test_a_problem_reads_as_one_line():
    assert str(Problem(line=3, text="unknown class 9")) == "line 3: unknown class 9"
    assert str(Problem(line=0, text="class 3 is missing")) == "class 3 is missing"
