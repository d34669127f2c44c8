"""Scores of submission files: the original's figures, missing classes, other videos' ratings, every kind of file."""

import json
import struct
from pathlib import Path

import pytest

from tests.data.factory import make_video, write_shard
from tests.test_submission import TEXT
from yt8m_assets.data.simulation.truth import TRUTH_HEADER
from yt8m_assets.errors import DataError, MissingDataError, SubmissionError
from yt8m_assets.evaluation import Ratings, bootstrap_map, mean_average_precision_at_k, ranking_map
from yt8m_assets.ranking.files import Ranking
from yt8m_assets.recipes.demo import RECIPE
from yt8m_assets.reports.submission_score import score_submission
from yt8m_assets.stages.ratings import read_ratings

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
SIZES = RECIPE.data.feature_sizes


def test_a_submission_is_scored_like_its_ranking():
    """The original leaves a class out that a file lacks; here it counts 0, the others are the same."""
    path = GOLDEN / "metrics_segment_submission.csv"
    lines = path.read_text().splitlines()
    lists = {int(line.split(",")[0]): line.split(",")[1].split(" ") for line in lines}
    ratings = Ratings.read_csv(GOLDEN / "metrics_segment_labels.csv")
    for k in (100, 1000, 100_000):
        original = mean_average_precision_at_k(lists, ratings.to_dict(), k)
        score = score_submission(path, ratings, k, 20)
        assert score.result.per_class == {**original.per_class, 99: 0.0}
        assert score.result.missing == original.missing == (99,)
        size = len(original.per_class)
        assert score.result.map == pytest.approx(original.map * size / (size + 1))
        assert score.interval.value == pytest.approx(score.result.map)
        whole = Ranking.from_dict({**lists, 99: []})
        assert ranking_map(whole, ratings, k).map == pytest.approx(score.result.map)
        interval = bootstrap_map(whole, ratings, 20, 0, k=k)
        assert (score.interval.low, score.interval.high) == pytest.approx((interval.low, interval.high))
    assert original.map == pytest.approx(0.36334, abs=5e-6)


def test_a_file_with_a_header_scores_the_same_and_an_unreadable_line_is_named(tmp_path):
    ratings = Ratings.from_dict({("abcd:0", 3): 0, ("-_Z9:295", 3): 1})
    path = tmp_path / "submission.csv"
    path.write_text(TEXT)
    assert score_submission(path, ratings).result.per_class == {3: 0.5}
    for bad in ("x,abcd:0\n", "3,abcd:0\n"):
        path.write_text(TEXT + bad)
        with pytest.raises(SubmissionError, match="line 5"):
            score_submission(path, ratings)


def test_a_class_with_positives_that_the_file_lacks_counts_0(tmp_path):
    ratings = Ratings.from_dict({("aaaa:0", 0): 1, ("bbbb:0", 0): 0, ("aaaa:0", 1): 1, ("bbbb:0", 1): 0})
    path = tmp_path / "submission.csv"
    path.write_text("Class,Segments\n0,aaaa:0 bbbb:0\n")
    score = score_submission(path, ratings)
    assert score.result.map == 0.5
    assert score.result.missing == (1,)
    assert score.to_json()["missing"] == [1]
    path.write_text("Class,Segments\n0,aaaa:0 bbbb:0\n1,bbbb:0 aaaa:0\n")
    assert score_submission(path, ratings).result.map == 0.75


def test_ratings_of_other_videos_are_refused(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("Class,Segments\n0,aaaa:0\n1,bbbb:0\n")
    for others in ({("cccc:0", 0): 1}, {("aaaa:0", 1): 1}, {("aaaa:5", 0): 1}):  # another video, class, second
        with pytest.raises(SubmissionError, match=r"lists none of the 1 rated segments .* other videos"):
            score_submission(path, Ratings.from_dict(others))
    with pytest.raises(DataError, match="no ranked class has a positive"):
        score_submission(path, Ratings.from_dict({("aaaa:0", 0): 0}))


def test_ratings_come_from_any_file_of_the_project(tmp_path):
    expected = {("abcd:5", 3): 1, ("abcd:10", 1): 0}
    plain, simulated, shard = tmp_path / "ratings.csv", tmp_path / "truth.csv", tmp_path / "validate.tfrecord"
    plain.write_text("segment_id,class_id,score\nabcd:5,3,1\nabcd:10,1,0\n")
    simulated.write_text(",".join(TRUTH_HEADER) + "\nabcd,5,3,1\nabcd,10,1,0\n")
    write_shard(shard, [make_video("abcd", 20, ratings=[(5, 3, 1.0), (10, 1, 0.0)], sizes=SIZES)], SIZES)
    for path in (plain, simulated, shard, tmp_path / "validate*.tfrecord", tmp_path):
        assert read_ratings(path, RECIPE.data).to_dict() == expected


def test_what_holds_no_ratings_is_named(tmp_path):
    path = tmp_path / "some file"
    with pytest.raises(MissingDataError, match="some file: no such file"):
        read_ratings(path, RECIPE.data)
    path.write_bytes(struct.pack("<Q", 3) + bytes(40))
    with pytest.raises(DataError, match="some file: neither a CSV of ratings nor shards"):
        read_ratings(path, RECIPE.data)
    write_shard(path, [make_video("abcd", 20, sizes=SIZES)], SIZES)
    with pytest.raises(DataError, match="some file: holds no segment ratings"):
        read_ratings(path, RECIPE.data)
    path.write_bytes(b"abcd:5,3,1\n\xff\n")
    with pytest.raises(DataError, match="some file: not a CSV of ratings: byte 11 is no text"):
        read_ratings(path, RECIPE.data)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="some file, line 1"):
        read_ratings(path, RECIPE.data)
