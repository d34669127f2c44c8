import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.factory import GOLDEN, SIZES, encode, encode_video_example, make_video, write_records, write_shard
from yt8m_assets.data.dataset import index as index_module
from yt8m_assets.data.dataset.index import (
    NOT_LOCATED,
    RECORD,
    ShardIndex,
    build_index,
    framing_checksum,
    index_path,
    load_index,
)
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.errors import CorruptShardError, SchemaMismatchError


def shard(tmp_path, count=4):
    return write_shard(
        tmp_path / "a.tfrecord", [make_video(f"vid{n}", n + 1, [n], [(0, n, 1.0)]) for n in range(count)]
    )


def test_it_counts_and_locates(tmp_path):
    index = build_index(shard(tmp_path), Reading(feature_sizes=SIZES))
    assert (index.num_records, index.num_labels, index.num_ratings) == (4, 4, 4)
    assert index.video_ids == ["vid0", "vid1", "vid2", "vid3"]
    assert index.records["num_frames"].tolist() == [1, 2, 3, 4]
    assert RECORD.itemsize == 40
    assert index.records["number"].tolist() == [0, 1, 2, 3]
    assert (index.records["rgb_start"] != NOT_LOCATED).all()


def test_it_survives_its_file(tmp_path):
    index = build_index(shard(tmp_path), Reading(feature_sizes=SIZES))
    again = ShardIndex.from_bytes(index.to_bytes())
    assert np.array_equal(again.records, index.records)
    assert again.video_ids == index.video_ids
    assert (again.checksum, again.size, again.feature_sizes) == (index.checksum, index.size, SIZES)


def test_every_flipped_bit_of_an_index_file_is_noticed(tmp_path):
    content = bytearray(build_index(shard(tmp_path, 2), Reading(feature_sizes=SIZES)).to_bytes())
    for bit in range(len(content) * 8):
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            ShardIndex.from_bytes(bytes(content))
        content[bit // 8] ^= 1 << bit % 8


def test_the_checksum_changes_with_the_content(tmp_path):
    uri = shard(tmp_path)
    before = framing_checksum(uri)
    assert before == build_index(uri, Reading(feature_sizes=SIZES)).checksum
    changed = make_video("vid9", 4, [3], [(0, 3, 1.0)])
    write_shard(
        tmp_path / "a.tfrecord", [*[make_video(f"vid{n}", n + 1, [n], [(0, n, 1.0)]) for n in range(3)], changed]
    )
    assert framing_checksum(uri) != before


def test_a_fitting_index_is_used_and_a_stale_one_rebuilt(tmp_path, monkeypatch):
    uri, cache = shard(tmp_path), tmp_path / "cache"
    first = load_index(uri, Reading(index_folder=cache, feature_sizes=SIZES))
    path = index_path(uri, cache)
    written = path.stat().st_mtime_ns
    report = ReadReport()
    assert load_index(uri, Reading(index_folder=cache, feature_sizes=SIZES), report=report).checksum == first.checksum
    assert path.stat().st_mtime_ns == written
    assert report.num_records == 4
    shard(tmp_path, 3)
    assert load_index(uri, Reading(index_folder=cache, feature_sizes=SIZES)).num_records == 3
    path.write_bytes(b"junk")
    assert load_index(uri, Reading(index_folder=cache, feature_sizes=SIZES)).num_records == 3


def test_damaged_records_are_reported_from_the_cache_too(tmp_path):
    uri = write_records(
        tmp_path / "a.tfrecord", [encode(make_video("vid0", 2)), b"junk", encode(make_video("vid2", 1))]
    )
    reading = Reading(index_folder=tmp_path / "cache", feature_sizes=SIZES, on_corrupt="quarantine")
    for _ in range(2):
        report = ReadReport()
        index = load_index(uri, reading, report)
        assert index.video_ids == ["vid0", "vid2"]
        assert index.num_records == 3
        assert [record.record for record in report.quarantined] == [1]
    with pytest.raises(CorruptShardError):
        load_index(uri, Reading(index_folder=tmp_path / "cache", feature_sizes=SIZES))


def test_the_originals_shards(tmp_path):
    index = build_index(str(GOLDEN / "frame_segment_labels.tfrecord"))
    assert index.records["num_frames"].tolist() == [120, 300, 22, 304]
    assert (index.num_labels, index.num_ratings) == (7, 12)


def test_an_index_of_other_feature_sizes_does_not_fit(tmp_path):
    """Bytes that are sound under one size say nothing of another."""
    uri = shard(tmp_path)
    load_index(uri, Reading(index_folder=tmp_path / "cache", feature_sizes=SIZES))
    with pytest.raises(SchemaMismatchError, match="rgb: expected 4 bytes a frame, got 8"):
        load_index(uri, Reading(index_folder=tmp_path / "cache", feature_sizes=(4, 8)))


@pytest.mark.parametrize("on_corrupt", ["raise", "quarantine"])
def test_a_video_level_record_among_others_is_refused_by_name(tmp_path, on_corrupt):
    video = encode_video_example("vvvv", np.zeros(12, np.float32), [3], feature_sizes=SIZES)
    uri = write_records(tmp_path / "a.tfrecord", [encode(make_video("aaaa", 2)), video])
    with pytest.raises(SchemaMismatchError, match=r"a\.tfrecord: record 1 at byte .* a video-level record"):
        load_index(uri, Reading(feature_sizes=SIZES, on_corrupt=on_corrupt))


def test_an_index_can_leave_videos_out(tmp_path):
    index = build_index(shard(tmp_path), Reading(feature_sizes=SIZES))
    left = index.without(np.array(["vid2", "none"], "S11"))
    assert left.video_ids == ["vid0", "vid1", "vid3"]
    assert left.records["number"].tolist() == [0, 1, 3]
    assert index.without(np.array(["none"], "S11")) is index


def test_a_shard_of_this_machine_is_recognised_by_size_and_time_without_reading_it(tmp_path, monkeypatch):
    uri = write_shard(tmp_path / "s.tfrecord", [make_video("aaaa", 3, [1]), make_video("bbbb", 2)])
    reading = Reading(index_folder=tmp_path / "cache", feature_sizes=SIZES)
    load_index(uri, reading)
    walked = []
    real = index_module.framing_crc
    monkeypatch.setattr(index_module, "framing_crc", lambda *a, **o: walked.append(a) or real(*a, **o))
    load_index(uri, reading)
    assert walked, "just written: it may change again within the same tick"
    os.utime(uri, (1e9, 1e9))
    index_module.index_path(uri, tmp_path / "cache").unlink()
    first = load_index(uri, reading)
    walked.clear()
    assert load_index(uri, reading).checksum == first.checksum
    assert not walked
    Path(uri).write_bytes(Path(uri).read_bytes()[::-1])
    with pytest.raises(CorruptShardError):
        load_index(uri, reading)
