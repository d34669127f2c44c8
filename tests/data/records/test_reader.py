"""The reader against what the original's readers gave for the same files."""

import hashlib
import json

import numpy as np
import pytest

from tests.data.factory import GOLDEN, SIZES, encode, make_video, same_video, write_records, write_shard
from yt8m_assets.data import ReadReport, read_shard
from yt8m_assets.data.dataset.windows import dequantise, take_frames
from yt8m_assets.data.records.examples import encode_sequence_example
from yt8m_assets.data.records.reader import TYPICAL_RECORD_BYTES
from yt8m_assets.data.records.wire import bytes_feature, field, float_feature, map_entry
from yt8m_assets.errors import ConfigError, CorruptShardError, SchemaMismatchError


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
        frames, valid = take_frames(video.frames, index)
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


def test_records_have_the_layout_of_the_released_ones(tmp_path):
    """The bytes around the features of a released record of 170 frames with one label."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (170, 1152), dtype=np.uint8)
    record = encode_sequence_example("abcd", frames, [11])
    rgb = b"\x12\x90\x92\x0c\n\x83\xdc\n\n\x03rgb\x12\xfa\xdb\n\n\x86\x08\n\x83\x08\n\x80\x08"
    assert record.startswith(
        b"\n!\n\x0e\n\x02id\x12\x08\n\x06\n\x04abcd\n\x0f\n\x06labels\x12\x05\x1a\x03\n\x01\x0b" + rgb
    )
    assert record[175_662:].startswith(b"\n\x85\xb6\x01\n\x05audio\x12\xfa\xb5\x01\n\x86\x01\n\x83\x01\n\x80\x01")
    assert len(record) == 198_967
    (video,) = read_shard(write_records(tmp_path / "a.tfrecord", [record]))
    assert (video.video_id, video.labels.tolist()) == ("abcd", [11])
    assert np.array_equal(video.frames, frames)


def test_video_level_records_in_the_layout_of_2017(tmp_path):
    """`video_id` for `id`, the audio mean first, no labels: 4684 bytes, as released."""
    mean = np.random.default_rng(0).normal(size=1152).astype(np.float32)
    entries = [
        map_entry("mean_audio", float_feature(mean[1024:])),
        map_entry("mean_rgb", float_feature(mean[:1024])),
        map_entry("video_id", bytes_feature(b"abcdefghi")),
    ]
    record = field(1, b"".join(entries))
    assert len(record) == 4684
    assert record.startswith(b"\n\xc9$\n\x95\x04\n\nmean_audio\x12\x86\x04\x12\x83\x04\n\x80\x04")
    (video,) = read_shard(write_records(tmp_path / "a.tfrecord", [record]))
    assert (video.video_id, video.frames, len(video.labels)) == ("abcdefghi", None, 0)
    assert np.array_equal(video.mean_features, mean)


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
    assert (
        f"the remaining {lost:,} bytes of the shard are lost with it, about 2 records" in report.quarantined[0].reason
    )
    assert [(entry.num_bytes, entry.num_records) for entry in report.quarantined] == [(lost, 2)]
    assert report.num_lost == 2


def test_the_cap_means_records_however_they_are_lost(tmp_path):
    path = tmp_path / "a.tfrecord"
    records = [encode(make_video(f"vid{number}", 3)) for number in range(10)]
    write_records(path, records)
    damage(path, 4 * (len(records[0]) + 16) + 2)
    options = {"feature_sizes": SIZES, "on_corrupt": "quarantine"}
    assert len(list(read_shard(str(path), report=ReadReport(max_quarantined=6), **options))) == 4
    with pytest.raises(CorruptShardError, match="more than 5 records are damaged"):
        list(read_shard(str(path), report=ReadReport(max_quarantined=5), **options))


def test_the_records_behind_a_damaged_first_header_are_estimated_too(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_records(path, [bytes(TYPICAL_RECORD_BYTES)] * 4)
    damage(path, 2)
    report = ReadReport()
    assert list(read_shard(str(path), on_corrupt="quarantine", report=report)) == []
    assert report.num_lost == 4


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
