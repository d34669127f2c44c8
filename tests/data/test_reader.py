"""The reader against what the original's readers gave for the same files, and against real records."""

import hashlib
import json

import numpy as np
import pytest

from tests.data.factory import GOLDEN, REAL, SIZES, encode, make_video, same_video, write_records, write_shard
from yt8m_assets.data import ReadReport, read_shard
from yt8m_assets.data.windows import dequantise, gather_frames
from yt8m_assets.errors import ConfigError, CorruptShardError, SchemaMismatchError

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="the real records lie in a sibling folder `shared`")


def dense(frames: np.ndarray, max_frames: int) -> np.ndarray:
    matrix = np.zeros((1, max_frames, frames.shape[1]), np.float32)
    used = dequantise(frames[:max_frames])
    matrix[0, : len(used)] = used
    return matrix


def sha(matrix: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "golden", "max_frames"),
    [
        ("frame_video_labels", "out_frame_video_labels", 300),
        ("frame_test", "out_frame_test", 300),
        ("frame_video_labels", "out_frame_video_labels_maxframes20", 20),
        ("frame_segment_labels", "out_frame_segment_file_as_video", 300),
    ],
)
def test_whole_videos_are_bit_equal_to_the_originals(name, golden, max_frames):
    expected = json.loads((GOLDEN / f"{golden}.json").read_text())
    arrays = np.load(GOLDEN / f"{golden}.npz")
    videos = list(read_shard(str(GOLDEN / f"{name}.tfrecord")))
    assert len(videos) == len(expected)
    for number, (video, entry) in enumerate(zip(videos, expected, strict=True)):
        assert [video.video_id] == entry["ids"]
        assert [min(video.num_frames, max_frames)] == entry["num_frames"]
        assert sorted(video.labels.tolist()) == sorted(arrays[f"{number}/labels_nonzero_idx"][:, 1].tolist())
        assert sha(dense(video.frames, max_frames)) == entry["matrix_sha256"]


def test_rated_segments_are_bit_equal_to_the_originals():
    expected = json.loads((GOLDEN / "out_frame_segment_labels.json").read_text())
    for video, entry in zip(read_shard(str(GOLDEN / "frame_segment_labels.tfrecord")), expected, strict=True):
        starts = list(dict.fromkeys(video.segments.start_times.tolist()))
        index = np.array(starts)[:, None] + np.arange(5)
        index[index >= min(video.num_frames, 300)] = -1
        frames, valid = gather_frames(video.frames, index)
        matrix = dequantise(frames)
        matrix[~valid] = 0
        assert sha(matrix) == entry["matrix_sha256"]
        assert [video.video_id] * len(starts) == entry["ids"]


def test_video_level_records():
    arrays = np.load(GOLDEN / "out_video_level.npz")
    for number, video in enumerate(read_shard(str(GOLDEN / "video_level.tfrecord"))):
        assert video.video_id == arrays["video_ids"][number].decode()
        assert video.frames is None
        assert np.array_equal(video.mean_features, arrays["video_matrix"][number])
        assert video.labels.tolist() == np.flatnonzero(arrays["labels"][number]).tolist()


@needs_real_data
def test_a_real_frame_level_record():
    (video,) = read_shard(str(REAL / "frame_level" / "SjJ3.tfrecord"))
    assert (video.video_id, video.frames.shape, video.labels.tolist()) == ("SjJ3", (170, 1152), [11])
    features = dequantise(video.frames)
    assert features[:, :1024].std() == pytest.approx(1.006, abs=1e-3)
    assert features[:, 1024:].std() == pytest.approx(0.974, abs=1e-3)


@needs_real_data
def test_real_video_level_records_of_2017():
    videos = [video for number in (0, 1) for video in read_shard(str(REAL / "video_level" / f"testa{number}.tfrecord"))]
    assert len(videos) > 300
    assert all(video.mean_features.shape == (1152,) and not len(video.labels) for video in videos)


def test_what_is_written_is_read_back(tmp_path):
    videos = [make_video("aaaa", 7, [1, 2]), make_video("bbbb", 0), make_video("cccc", 3, [], [(0, 5, 1.0)])]
    uri = write_shard(tmp_path / "a.tfrecord", videos)
    assert all(same_video(*pair) for pair in zip(read_shard(uri, feature_sizes=SIZES), videos, strict=True))


def test_equal_videos_give_equal_bytes(tmp_path):
    video = make_video("aaaa", 7, [1, 2], [(0, 1, 1.0)])
    assert encode(video) == encode(make_video("aaaa", 7, [1, 2], [(0, 1, 1.0)]))


def damage(path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_quarantine_sets_one_record_aside_and_goes_on(tmp_path):
    path = tmp_path / "a.tfrecord"
    records = [encode(make_video(f"vid{number}", 3)) for number in range(4)]
    records[2] = encode(make_video("vid2", 3), SIZES).replace(b"rgb", b"rgx")
    write_records(path, records)
    damage(path, len(records[0]) + 16 + 40)
    report = ReadReport()
    videos = list(read_shard(str(path), feature_sizes=SIZES, on_corrupt="quarantine", report=report))
    assert [video.video_id for video in videos] == ["vid0", "vid3"]
    assert [(entry.record, entry.uri) for entry in report.quarantined] == [(1, str(path)), (2, str(path))]
    assert "checksum" in report.quarantined[0].reason
    assert "rgb" in report.quarantined[1].reason
    assert report.num_records == 2


def test_a_damaged_header_loses_the_rest_and_says_how_much(tmp_path):
    path = tmp_path / "a.tfrecord"
    records = [encode(make_video(f"vid{number}", 3)) for number in range(3)]
    write_records(path, records)
    damage(path, len(records[0]) + 16 + 2)
    report = ReadReport()
    videos = list(read_shard(str(path), feature_sizes=SIZES, on_corrupt="quarantine", report=report))
    assert [video.video_id for video in videos] == ["vid0"]
    lost = len(records[1]) + len(records[2]) + 32
    assert f"the remaining {lost:,} bytes of the shard are lost with it" in report.quarantined[0].reason


def test_quarantine_has_a_cap(tmp_path):
    uri = write_records(tmp_path / "a.tfrecord", [b"junk"] * 4)
    with pytest.raises(CorruptShardError, match="more than 2 records are damaged"):
        list(read_shard(uri, on_corrupt="quarantine", report=ReadReport(max_quarantined=2)))


def test_an_unknown_way_to_treat_damage_is_refused(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 1)])
    with pytest.raises(ConfigError, match="on_corrupt"):
        list(read_shard(uri, on_corrupt="ignore"))  # type: ignore[arg-type]


def test_other_feature_sizes_are_named(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 1)])
    with pytest.raises(SchemaMismatchError, match="rgb: expected 1024 bytes a frame, got 8"):
        list(read_shard(uri))
