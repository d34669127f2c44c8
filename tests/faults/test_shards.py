"""Rows F15-F23 and F25: damaged, hostile and inconsistent shards."""

import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.data.factory import SIZES, encode, frame_record, make_video, write_records, write_shard, write_split
from tests.data.packing import pack_shards
from yt8m_assets.data import ReadReport, read_shard
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.folds import find_duplicates, find_leaks, require_disjoint, require_unique
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.ratings import collect_ratings
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import scan_shards
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.data.dataset.shards import expand_patterns
from yt8m_assets.data.records.framing import OVERHEAD_BYTES, masked_crc
from yt8m_assets.data.records.wire import bytes_feature, field, map_entry
from yt8m_assets.errors import CorruptShardError, DataError, MissingDataError, SchemaMismatchError, VocabularyError


def read(path):
    return list(read_shard(str(path), feature_sizes=SIZES))


@pytest.fixture
def tiny(tmp_path):
    """A shard of two short records."""
    path = tmp_path / "tiny.tfrecord"
    write_shard(path, [make_video("aaaa", 2, [1]), make_video("bbbb", 1, [2])])
    return path


def test_f15_a_cut_at_every_byte_is_detected(tiny):
    content = tiny.read_bytes()
    first = OVERHEAD_BYTES + int.from_bytes(content[:8], "little")
    for cut in range(1, len(content)):
        tiny.write_bytes(content[:cut])
        if cut == first:
            assert [video.video_id for video in read(tiny)] == ["aaaa"]  # a whole shorter shard: counts tell
            continue
        with pytest.raises(CorruptShardError) as caught:
            read(tiny)
        assert (caught.value.uri, caught.value.record) == (str(tiny), int(cut > first))
        assert caught.value.offset == (first if cut > first else 0)


def test_f15_a_cut_between_records_makes_the_index_stale(tiny, tmp_path):
    reading = Reading(feature_sizes=SIZES)
    shards = pack_shards(tmp_path / "index", [str(tiny)], reading)
    before = build_index(str(tiny), reading)
    content = tiny.read_bytes()
    tiny.write_bytes(content[: OVERHEAD_BYTES + int.from_bytes(content[:8], "little")])
    with pytest.raises(CorruptShardError, match=r"bytes, .* when it was indexed"):
        load_videos(shards, reading).read(0)
    after = build_index(str(tiny), reading)
    assert (before.num_records, after.num_records) == (2, 1)
    assert before.checksum != after.checksum


def test_f16_every_flipped_bit_is_detected_before_a_video_is_handed_out(tiny):
    content = bytearray(tiny.read_bytes())
    first = OVERHEAD_BYTES + int.from_bytes(content[:8], "little")
    for bit in range(len(content) * 8):
        content[bit // 8] ^= 1 << bit % 8
        tiny.write_bytes(content)
        videos = []
        with pytest.raises(CorruptShardError):
            for video in read_shard(str(tiny), feature_sizes=SIZES):
                videos.append(video.video_id)
        assert videos == (["aaaa"] if bit // 8 >= first else [])
        content[bit // 8] ^= 1 << bit % 8


def run_limited(code: str, megabytes: int = 700) -> str:
    """Run code in a process that may not allocate more than it needs to import, plus a little."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({megabytes} << 20,) * 2)\n" + textwrap.dedent(
        code
    )
    result = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("length", [2**24, 2**40, 2**63 - 1])
def test_f17_a_huge_length_is_refused_before_allocation(tmp_path, length):
    path = tmp_path / "bomb.tfrecord"
    size = length.to_bytes(8, "little")
    path.write_bytes(size + masked_crc(size).to_bytes(4, "little") + bytes(64))
    out = run_limited(
        f"""
        from yt8m_assets.data import read_shard
        from yt8m_assets.errors import CorruptShardError
        try:
            list(read_shard({str(path)!r}))
        except CorruptShardError as error:
            print(error)
        """
    )
    assert f"claims {length:,} bytes" in out


def bomb(kind: str) -> bytes:
    """Records that are small on disk and large once parsed."""
    context = map_entry("id", bytes_feature(b"abcd"))
    if kind == "frames":
        return field(1, context) + field(2, map_entry("rgb", b"\x0a\x00" * 3_000_000))
    if kind == "values of a frame":
        frame = field(1, field(1, b"\x0a\x00" * 1_500_000))
        return field(1, context) + field(2, map_entry("rgb", frame) + map_entry("audio", frame))
    if kind == "labels":
        return field(1, context + map_entry("labels", field(3, field(1, b"\x01" * 6_000_000))))
    return field(1, context + map_entry("x", b"") * 500_000)


@pytest.mark.parametrize("kind", ["frames", "values of a frame", "labels", "features"])
def test_f18_a_protobuf_bomb_is_refused_in_bounded_memory(tmp_path, kind):
    path = tmp_path / "bomb.tfrecord"
    path.write_bytes(frame_record(bomb(kind)))
    assert path.stat().st_size < 8 * 2**20
    out = run_limited(
        f"""
        from yt8m_assets.data import read_shard
        from yt8m_assets.errors import SchemaMismatchError
        try:
            list(read_shard({str(path)!r}))
        except SchemaMismatchError as error:
            print(error.reason)
        """,
        megabytes=1000,
    )
    assert any(word in out for word in ("limit", "expected", "takes", "neither"))


def test_f19_an_empty_shard_is_counted_and_warned_of(tmp_path, caplog):
    uris = write_split(tmp_path, [2])
    empty = tmp_path / "empty.tfrecord"
    empty.write_bytes(b"")
    report = ReadReport()
    with caplog.at_level(logging.WARNING):
        indices = scan_shards([*uris, str(empty)], Reading(feature_sizes=SIZES), report=report)
    assert [len(index.records) for index in indices] == [2, 0]
    assert (report.num_shards, report.num_empty_shards, report.num_records) == (2, 1, 2)
    assert "empty.tfrecord: the shard is empty" in caplog.text


def test_f19_only_empty_shards_are_an_error(tmp_path):
    empty = tmp_path / "empty.tfrecord"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"all 1 shards are empty, .*empty\.tfrecord"):
        scan_shards([str(empty)], Reading(feature_sizes=SIZES))


def test_f19_a_missing_shard_is_named_with_what_is_there(tmp_path):
    write_split(tmp_path, [1, 1])
    with pytest.raises(
        FileNotFoundError, match=r"validate\*: matches no shard; .* holds train0000\.tfrecord, train0001"
    ):
        expand_patterns([str(tmp_path / "train*"), str(tmp_path / "validate*")])
    with pytest.raises(MissingDataError, match=r"none\.tfrecord: no such shard"):
        read(tmp_path / "none.tfrecord")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(40), "gzip"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
        (b"no", ""),
    ],
)
def test_f20_a_file_that_is_no_tfrecord_is_recognised(tmp_path, content, what):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(content)
    with pytest.raises(CorruptShardError, match=f"record 0 at byte 0.*{what}"):
        read(path)


@pytest.mark.parametrize("size", [7, 9, 12])
def test_f21_a_wrong_feature_size_is_named(tmp_path, size):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 3, sizes=(size, 4))], sizes=(size, 4))
    with pytest.raises(SchemaMismatchError, match=f"rgb: expected 8 bytes a frame, got {size} in frame 0"):
        read(uri)


def test_f21_different_frame_counts_are_named(tmp_path):
    long, short = (encode(make_video("aaaa", count)) for count in (4, 3))
    messages = __import__("yt8m_assets.data.records.wire", fromlist=["wire"]).example_messages()
    example = messages.SequenceExample.FromString(long)
    other = messages.SequenceExample.FromString(short)
    example.feature_lists.feature_list["audio"].CopyFrom(other.feature_lists.feature_list["audio"])
    uri = write_records(tmp_path / "a.tfrecord", [example.SerializeToString()])
    with pytest.raises(SchemaMismatchError, match="rgb has 4 frames but audio has 3"):
        read(uri)


def test_f22_a_segment_beyond_the_end_is_kept_counted_and_refused_when_strict(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 7, [], [(5, 1, 1.0), (10, 1, 0.0), (7, 2, 1.0)])])
    report = ReadReport()
    (video,) = read_shard(uri, feature_sizes=SIZES, report=report)
    assert video.segments is not None
    assert video.segments.start_times.tolist() == [5, 10, 7]
    assert report.num_segments_beyond_end == 2
    with pytest.raises(SchemaMismatchError, match=r"segment_start_times: 10 lies beyond the video's end \(7 frames\)"):
        list(read_shard(uri, feature_sizes=SIZES, strict=True))
    table = SegmentTable(load_videos([uri], Reading(feature_sizes=SIZES)), num_classes=5)
    frames, valid = table.frames(np.arange(3))
    assert valid.sum(axis=1).tolist() == [2, 0, 0]
    assert not frames[1:].any()


def test_f22_a_negative_start_is_an_error(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 7, [], [(-5, 1, 1.0)])])
    with pytest.raises(SchemaMismatchError, match="segment_start_times: -5 is negative"):
        read(uri)


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_f23_a_label_outside_the_vocabulary_is_an_error(tmp_path, label):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 7, [3, label])])
    videos = load_videos([uri], Reading(feature_sizes=SIZES))
    dataset = PretrainingDataset(videos, num_classes=10, batch_size=1, window_frames=5)
    with pytest.raises(VocabularyError, match=f"video aaaa: labels: class {label} lies outside"):
        next(iter(dataset))


def test_f23_a_rating_of_a_class_that_is_not_rated_is_an_error(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 7, [3], [(0, 4, 1.0)])])
    with pytest.raises(VocabularyError, match="class 4 is not a rated class"):
        collect_ratings(load_videos([uri], Reading(feature_sizes=SIZES)), segment_classes=np.array([1, 2]))


def test_f25_ids_that_occur_twice_are_found_within_and_among_shards():
    ids = {"a/s1": ["aaaa", "bbbb", "aaaa"], "a/s2": ["cccc", "bbbb"], "a/s3": ["dddd"]}
    assert [str(duplicate) for duplicate in find_duplicates(ids)] == ["aaaa in s1, s1", "bbbb in s1, s2"]
    with pytest.raises(DataError, match="2 video ids occur more than once: aaaa in s1, s1; bbbb in s1, s2"):
        require_unique(ids)
    require_unique({"a/s3": ["dddd"]})


def test_f25_a_video_on_both_sides_of_the_hold_out_is_found():
    training, held_out = {"t1": ["aaaa", "bbbb"]}, {"v1": ["cccc", "bbbb"]}
    assert [leak.video_id for leak in find_leaks(training.items(), held_out)] == ["bbbb"]
    with pytest.raises(DataError, match="1 videos are both held out and trained on: bbbb in t1, v1"):
        require_disjoint(training.items(), held_out)
    require_disjoint(training.items(), {"v1": ["cccc"]})
