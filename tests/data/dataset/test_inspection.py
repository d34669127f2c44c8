import numpy as np
import pytest

from tests.data.factory import GOLDEN, SIZES, encode, encode_video_example, make_video, write_records, write_shard
from yt8m_assets.data.dataset.inspection import inspect, render
from yt8m_assets.errors import MissingDataError


def test_the_originals_shards_have_no_problems():
    text = render(inspect(str(GOLDEN / "*.tfrecord")))
    assert "4 shards" in text
    assert "17 videos" in text
    for line in (
        "4 frame level, labelled",
        "4 frame level, rated segments",
        "6 frame level, no labels",
        "3 video level",
    ):
        assert line in text
    assert "1 to 310 frames" in text
    assert "ratings: 12, of which 66.7% positive" in text
    assert "no problems" in text


def test_a_record_with_a_named_class_and_a_damaged_copy(tmp_path):
    vocabulary = tmp_path / "vocabulary.csv"
    vocabulary.write_text("Index,Name\n11,Food\n")
    path = tmp_path / "a.tfrecord"
    uri = write_shard(path, [make_video("aaaa", 170, [11])])
    text = render(inspect(uri, feature_sizes=SIZES, vocabulary_uri=str(vocabulary)))
    assert "170 to 170 frames" in text
    assert "11 Food (1)" in text
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    report = inspect(uri, feature_sizes=SIZES)
    assert report.problems == ["a.tfrecord: record 0 at byte 0: the checksum of the record's data is wrong"]
    assert report.total("num_damaged") == 1


def test_what_a_person_should_know_is_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = write_shard(
        tmp_path / "a.tfrecord", [make_video("aaaa", 3, [1, 40]), make_video("bbbb", 4, [], [(5, 1, 1.0)])]
    )
    write_records(tmp_path / "b.tfrecord", [encode(make_video("aaaa", 3)) + b"\x7a\x01x", b"junk"])
    (tmp_path / "c.tfrecord").write_bytes(b"")
    report = inspect(["*.tfrecord"], feature_sizes=SIZES, num_classes=40)
    text = "\n".join(report.problems)
    assert "b.tfrecord: record 1 at byte" in text
    assert "c.tfrecord: holds no record" in text
    assert "video id twice: aaaa in a.tfrecord, b.tfrecord" in text
    assert "1 ratings are of segments that start after their video's end" in text
    assert "labels of classes outside the vocabulary: 40" in text
    assert "1 records have an unusual encoding" in text
    assert max(len(line) for line in render(report).splitlines()) < 160
    assert first
    assert "\nproblems:\n  - " + report.problems[0] in render(report)


def test_nothing_to_inspect_is_an_error(tmp_path):
    with pytest.raises(MissingDataError):
        inspect(str(tmp_path / "*.tfrecord"))


def test_shards_patterns_and_folders_may_be_given_together(tmp_path):
    write_shard(tmp_path / "run[1]" / "deep" / "a.tfrecord", [make_video("aaaa", 1)])
    write_shard(tmp_path / "run1" / "b.tfrecord", [make_video("bbbb", 1)])
    other = write_shard(tmp_path / "c.tfrecord", [make_video("cccc", 1)])
    report = inspect([str(tmp_path / "run[1]"), other], feature_sizes=SIZES)
    assert [report.name(shard.uri) for shard in report.shards] == ["c.tfrecord", "run[1]/deep/a.tfrecord"]
    assert not report.problems


def test_a_video_may_stand_in_both_releases_but_only_once_in_each(tmp_path):
    labelled, rated = make_video("aaaa", 6, [1]), make_video("aaaa", 6, [1], [(0, 1, 1.0)])
    for release, video in (("2", labelled), ("3", rated)):
        write_shard(tmp_path / release / "frame" / "validate" / "validate00.tfrecord", [video])
    report = inspect([str(tmp_path / "2"), str(tmp_path / "3")], feature_sizes=SIZES)
    assert (report.problems, report.num_in_both) == ([], 1)
    text = render(report)
    assert "2/frame/validate/validate00.tfrecord" in text
    assert "3/frame/validate/validate00.tfrecord" in text
    assert "in both releases (2/ with labels, 3/ with ratings): 1," in text
    write_shard(tmp_path / "3" / "frame" / "validate" / "validate10.tfrecord", [rated])
    (problem,) = inspect(str(tmp_path), feature_sizes=SIZES).problems
    assert problem == (
        "video id twice: aaaa in 2/frame/validate/validate00.tfrecord, 3/frame/validate/validate00.tfrecord, "
        "3/frame/validate/validate10.tfrecord"
    )


def test_mixed_levels_and_a_missing_vocabulary_are_said(tmp_path):
    video = encode_video_example("bbbb", np.zeros(12, np.float32), feature_sizes=SIZES)
    uri = write_records(tmp_path / "a.tfrecord", [encode(make_video("aaaa", 2)), video])
    report = inspect(uri, feature_sizes=SIZES, vocabulary_uri=str(tmp_path / "none.csv"))
    assert report.problems[0].startswith("no names of classes: ")
    assert report.problems[1] == "a.tfrecord: mixes frame-level and 1 video-level records"


def test_a_shard_of_nothing_has_no_lengths(tmp_path):
    uri = write_records(tmp_path / "train00.tfrecord", [])
    text = render(inspect([str(uri)], feature_sizes=SIZES))
    assert "0 videos" in text
    assert "lengths" not in text
