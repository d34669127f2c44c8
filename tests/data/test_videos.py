import copy

import numpy as np
import pytest

from tests.data.factory import GOLDEN, SIZES, encode, make_video, same_video, write_records, write_shard, write_split
from yt8m_assets.data import read_shard
from yt8m_assets.data.examples import encode_video_example
from yt8m_assets.data.index import build_index
from yt8m_assets.data.memory import MemoryVideos, forget_shared_videos, load_videos
from yt8m_assets.data.videos import IndexedVideos
from yt8m_assets.errors import CorruptShardError, MissingDataError, SchemaMismatchError

ODD_TAIL = b"\x7a\x01x"


@pytest.fixture(autouse=True)
def _nothing_shared():
    forget_shared_videos()
    yield
    forget_shared_videos()


def mixed_split(tmp_path):
    """Two shards; one record of them has an encoding that takes the protobuf path."""
    first = write_split(tmp_path, [3])
    odd = encode(make_video("oddd", 9, [4], [(5, 2, 1.0)])) + ODD_TAIL
    return [*first, write_records(tmp_path / "b.tfrecord", [odd, encode(make_video("last", 4, [1]))])]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_videos_are_what_the_reader_gives(tmp_path, budget):
    uris = mixed_split(tmp_path)
    videos = load_videos(uris, memory_budget=budget, feature_sizes=SIZES)
    assert isinstance(videos, MemoryVideos if budget else IndexedVideos)
    expected = [video for uri in uris for video in read_shard(uri, feature_sizes=SIZES)]
    assert all(same_video(*pair) for pair in zip(videos, expected, strict=True))
    assert videos.shard_sizes.tolist() == [3, 2]
    assert videos.where(3) == f"{uris[1]}: video oddd"


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_any_window_is_a_slice_of_the_video(tmp_path, budget):
    videos = load_videos(mixed_split(tmp_path), memory_budget=budget, feature_sizes=SIZES)
    for _ in range(2):  # the first read verifies the record's checksum, later ones read the window alone
        for number, length in enumerate(videos.num_frames.tolist()):
            whole = videos.read(number)
            for first in range(length):
                for count in range(length - first + 1):
                    assert np.array_equal(videos.read(number, first, count), whole[first : first + count])


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_many_windows_at_once_equal_single_ones(tmp_path, budget):
    videos = load_videos(mixed_split(tmp_path), memory_budget=budget, feature_sizes=SIZES)
    numbers = [3, 1, 2, 4, 3, 1]
    firsts = [int(videos.num_frames[number]) - 3 - place % 2 for place, number in enumerate(numbers)]
    for _ in range(2):
        windows = videos.read_windows(numbers, firsts, 3)
        for window, number, first in zip(windows, numbers, firsts, strict=True):
            assert np.array_equal(window, videos.read(number, first, 3))


def test_memory_stays_flat_when_many_windows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("yt8m_assets.data.videos._MAX_TOUCHED", 2**10)
    videos = load_videos(write_split(tmp_path, [40]), feature_sizes=SIZES)
    dropped = []
    monkeypatch.setattr("yt8m_assets.data.framing.MappedFile.drop", lambda file: dropped.append(file))
    for number in range(40):
        videos.read(number)
    assert len(dropped) >= 20


def test_frames_beyond_max_frames_are_not_used():
    uris = [str(GOLDEN / "frame_video_labels.tfrecord")]
    for budget in (0, 1 << 30):
        videos = load_videos(uris, memory_budget=budget, max_frames=20)
        assert videos.num_frames.tolist() == [12, 20, 20, 20, 1]
        assert len(videos.read(2)) == 20


def test_damage_after_indexing_is_noticed_on_the_first_read(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_shard(path, [make_video("aaaa", 3), make_video("bbbb", 3)])
    videos = IndexedVideos([build_index(str(path), feature_sizes=SIZES)])
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert len(videos.read(0)) == 3
    with pytest.raises(CorruptShardError, match=r"record 1 .* checksum"):
        videos.read(1, 0, 1)


def test_a_shard_replaced_after_indexing_is_noticed(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_shard(path, [make_video("aaaa", 3, [1])])
    index = build_index(str(path), feature_sizes=SIZES)
    write_shard(path, [make_video("bbbb", 3, [1])])
    with pytest.raises(CorruptShardError, match="changed since it was indexed"):
        IndexedVideos([index]).annotations(0)
    path.unlink()
    with pytest.raises(MissingDataError, match="is gone"):
        IndexedVideos([index]).read(0)


def test_a_video_level_record_has_no_windows(tmp_path):
    record = encode_video_example("aaaa", np.zeros(12, np.float32), feature_sizes=SIZES)
    videos = IndexedVideos([build_index(write_records(tmp_path / "a.tfrecord", [record]), feature_sizes=SIZES)])
    with pytest.raises(SchemaMismatchError, match="got a video-level record"):
        videos.read(0)


def test_files_stay_within_a_limit(tmp_path):
    uris = write_split(tmp_path, [1] * 70)
    videos = IndexedVideos([build_index(uri, feature_sizes=SIZES) for uri in uris])
    assert sum(len(videos.read(number)) for number in range(70)) == int(videos.num_frames.sum())
    assert len(videos._files) == 64
    other = copy.copy(videos)  # as a worker process gets it: without the open files
    assert not other._files
    assert np.array_equal(other.read(69), videos.read(69))


def test_memory_is_shared_by_content_and_within_the_budget(tmp_path):
    uris = write_split(tmp_path, [3, 2])
    options = {"feature_sizes": SIZES, "memory_budget": 10_000}
    first = load_videos(uris, **options)
    assert load_videos(uris, **options) is first
    assert load_videos(uris[:1], **options) is not first
    write_shard(tmp_path / "train0001.tfrecord", [make_video("newv", 5)])
    assert load_videos(uris, **options) is not first
    with pytest.raises(ValueError, match="read-only"):
        first.read(0)[:] = 0
