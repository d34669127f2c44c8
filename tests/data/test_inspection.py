import pytest

from tests.data.factory import GOLDEN, REAL, SIZES, encode, make_video, write_records, write_shard
from yt8m_assets.data.inspection import inspect, render
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


@pytest.mark.skipif(not REAL.is_dir(), reason="the real records lie in a sibling folder `shared`")
def test_a_real_record_and_a_damaged_copy(tmp_path):
    source = REAL / "frame_level" / "SjJ3.tfrecord"
    vocabulary = str(REAL / "vocabulary" / "vocabulary.csv")
    text = render(inspect(str(source), vocabulary_uri=vocabulary))
    assert "170 to 170 frames" in text
    assert "11 Food (1)" in text
    damaged = bytearray(source.read_bytes())
    damaged[1000] ^= 1
    path = tmp_path / "SjJ3.tfrecord"
    path.write_bytes(damaged)
    report = inspect(str(path))
    assert report.problems == [f"{path}: record 0 at byte 0: the checksum of the record's data is wrong"]
    assert report.total("num_damaged") == 1


def test_what_a_person_should_know_is_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the report names shards by the paths given
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


def test_nothing_to_inspect_is_an_error(tmp_path):
    with pytest.raises(MissingDataError):
        inspect(str(tmp_path / "*.tfrecord"))
