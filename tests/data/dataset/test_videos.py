import copy
import os
import pickle

import numpy as np
import pytest

from tests.data.factory import GOLDEN, SIZES, encode, make_video, same_video, write_records, write_shard, write_split
from tests.data.packing import pack_shards
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.index import build_index
from yt8m_assets.data.dataset.memory import MemoryVideos, _shared, load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.data.records.reader import ReadReport
from yt8m_assets.errors import CorruptShardError, MissingDataError


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def damage(path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


ODD_TAIL = b"\x7a\x01x"


@pytest.fixture(autouse=True)
def _nothing_shared():
    _shared.clear()
    yield
    _shared.clear()


def mixed_split(tmp_path):
    """Two shards; one record of them has an encoding that takes the protobuf path."""
    first = write_split(tmp_path, [3])
    odd = encode(make_video("oddd", 9, [4], [(5, 2, 1.0)])) + ODD_TAIL
    return [*first, write_records(tmp_path / "b.tfrecord", [odd, encode(make_video("last", 4, [1]))])]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_videos_are_what_the_reader_gives(tmp_path, budget):
    uris = mixed_split(tmp_path)
    videos = load_videos(uris, Reading(feature_sizes=SIZES), memory_budget=budget)
    assert isinstance(videos, MemoryVideos if budget else IndexedVideos)
    expected = [video for uri in uris for video in read_shard(uri, feature_sizes=SIZES)]
    assert all(same_video(*pair) for pair in zip(videos, expected, strict=True))
    assert videos.shard_sizes.tolist() == [3, 2]
    assert videos.where(3) == f"{uris[1]}: video oddd"


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_any_window_is_a_slice_of_the_video(tmp_path, budget):
    videos = load_videos(mixed_split(tmp_path), Reading(feature_sizes=SIZES), memory_budget=budget)
    for _ in range(2):  # the first read verifies the record's checksum, later ones read the window alone
        for number, length in enumerate(videos.num_frames.tolist()):
            whole = videos.read(number)
            for first in range(length):
                for count in range(length - first + 1):
                    assert np.array_equal(videos.read(number, first, count), whole[first : first + count])


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_many_windows_at_once_equal_single_ones(tmp_path, budget):
    videos = load_videos(mixed_split(tmp_path), Reading(feature_sizes=SIZES), memory_budget=budget)
    numbers = [3, 1, 2, 4, 3, 1]
    firsts = [int(videos.num_frames[number]) - 3 - place % 2 for place, number in enumerate(numbers)]
    for _ in range(2):
        windows = videos.read_windows(numbers, firsts, 3)
        for window, number, first in zip(windows, numbers, firsts, strict=True):
            assert np.array_equal(window, videos.read(number, first, 3))


def test_memory_stays_flat_when_many_windows_are_read(tmp_path):
    path = tmp_path / "large.tfrecord"
    write_shard(path, [make_video(f"vid{number}", 4000, sizes=(1024, 128)) for number in range(10)], (1024, 128))
    videos = load_videos([str(path)])
    before = resident_bytes()
    for number in range(10):
        assert len(videos.read(number, 100, 5)) == 5
        videos.read_windows([number] * 40, list(range(0, 4000, 100)), 5)
    assert path.stat().st_size > 45_000_000
    assert resident_bytes() - before < 20_000_000


def test_frames_beyond_max_frames_are_not_used():
    uris = [str(GOLDEN / "frame_video_labels.tfrecord")]
    for budget in (0, 1 << 30):
        videos = load_videos(uris, Reading(max_frames=20), memory_budget=budget)
        assert videos.num_frames.tolist() == [12, 20, 20, 20, 1]
        assert len(videos.read(2)) == 20


def test_damage_after_indexing_is_noticed_on_the_first_read(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_shard(path, [make_video("aaaa", 3), make_video("bbbb", 3)])
    videos = IndexedVideos([build_index(str(path), Reading(feature_sizes=SIZES))])
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert len(videos.read(0)) == 3
    with pytest.raises(CorruptShardError, match=r"record 1 .* checksum"):
        videos.read(1, 0, 1)


def test_a_shard_replaced_after_indexing_is_noticed(tmp_path):
    path = tmp_path / "a.tfrecord"
    write_shard(path, [make_video("aaaa", 3, [1])])
    index = build_index(str(path), Reading(feature_sizes=SIZES))
    write_shard(path, [make_video("bbbb", 3, [1])])
    with pytest.raises(CorruptShardError, match="changed since it was indexed"):
        IndexedVideos([index]).annotations(0)
    path.unlink()
    with pytest.raises(MissingDataError, match="is gone"):
        IndexedVideos([index]).read(0)


def test_files_stay_within_a_limit(tmp_path):
    uris = write_split(tmp_path, [1] * 70)
    videos = IndexedVideos([build_index(uri, Reading(feature_sizes=SIZES)) for uri in uris])
    assert sum(len(videos.read(number)) for number in range(70)) == int(videos.num_frames.sum())
    assert len(videos._files) == 64
    other = copy.copy(videos)  # as a worker process gets it: without the open files
    assert not other._files
    assert np.array_equal(other.read(69), videos.read(69))


def test_memory_is_shared_by_content_and_within_the_budget(tmp_path):
    uris = write_split(tmp_path, [3, 2])
    options = {"reading": Reading(feature_sizes=SIZES), "memory_budget": 10_000}
    first = load_videos(uris, **options)
    assert load_videos(uris, **options) is first
    assert load_videos(uris[:1], **options) is not first
    write_shard(tmp_path / "train0001.tfrecord", [make_video("newv", 5)])
    assert load_videos(uris, **options) is not first
    with pytest.raises(ValueError, match="read-only"):
        first.read(0)[:] = 0


def test_what_is_shared_stays_within_the_budget_and_the_oldest_goes_first(tmp_path):
    uris = write_split(tmp_path, [3, 3, 3, 3])
    size = [load_videos([uri], Reading(feature_sizes=SIZES), memory_budget=1 << 20).frames.nbytes for uri in uris]
    _shared.clear()
    options = {"reading": Reading(feature_sizes=SIZES), "memory_budget": size[0] + size[1] + min(size) // 2}
    first, second = (load_videos([uri], **options) for uri in uris[:2])
    assert load_videos([uris[0]], **options) is first  # both fit, and the second is now the older one
    load_videos([uris[2]], **options)
    assert load_videos([uris[1]], **options) is not second
    assert not isinstance(load_videos(uris, **options), MemoryVideos)  # all together do not fit


PATHS = {
    "read": lambda videos: videos.read(1, 0, 1),
    "read whole": lambda videos: videos.read(1),
    "read_windows": lambda videos: videos.read_windows([0, 1], [0, 0], 1),
    "annotations": lambda videos: videos.annotations(1),
    "iteration": list,
    "memory": MemoryVideos,
    "after a copy to another process": lambda videos: pickle.loads(pickle.dumps(videos)).annotations(1),
}


@pytest.mark.parametrize("odd", [False, True], ids=["located", "protobuf"])
@pytest.mark.parametrize("path", PATHS)
def test_f16_every_flipped_bit_of_a_record_is_noticed_on_every_path(tmp_path, path, odd):
    """Labels, ratings, id, frames, checksum: each byte of the record, whatever is asked of it first."""
    file = tmp_path / "a.tfrecord"
    records = [encode(make_video("aaaa", 1)), encode(make_video("bbbb", 2, [1], [(0, 3, 1.0)])) + ODD_TAIL * odd]
    write_records(file, records)
    index = build_index(str(file), Reading(feature_sizes=SIZES))
    start = len(records[0]) + 16
    for offset in range(start + 12, file.stat().st_size):
        damage(file, offset)
        with pytest.raises(CorruptShardError, match=f"record 1 at byte {start}: the checksum of the record's data is"):
            PATHS[path](IndexedVideos([index]))
        damage(file, offset)
    PATHS[path](IndexedVideos([index]))


@pytest.mark.parametrize("path", PATHS)
def test_a_sound_record_that_is_not_the_indexed_one_is_noticed_on_every_path(tmp_path, path):
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video("aaaa", 1), make_video("bbbb", 2, [1], [(0, 3, 1.0)])])
    index = build_index(str(file), Reading(feature_sizes=SIZES))
    write_shard(file, [make_video("aaaa", 1), make_video("bbbb", 2, [1], [(0, 3, 0.0)])])
    for on_corrupt in ("raise", "quarantine"):
        with pytest.raises(CorruptShardError, match=r"record 1 .* has changed since it was indexed; run"):
            PATHS[path](IndexedVideos([index], Reading(on_corrupt=on_corrupt)))


def test_a_record_is_verified_once_in_each_process(tmp_path):
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video("aaaa", 3, [1])])
    videos = IndexedVideos([build_index(str(file), Reading(feature_sizes=SIZES))])
    videos.annotations(0)
    damage(file, file.stat().st_size - 1)
    assert len(videos.read(0)) == len(videos.read_windows([0], [0], 3)[0]) == 3
    with pytest.raises(CorruptShardError, match="checksum"):
        pickle.loads(pickle.dumps(videos)).read(0)  # another process verifies for itself


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_a_record_damaged_after_indexing_is_set_aside_under_quarantine(tmp_path, caplog, budget):
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video(name, 3, [1], [(0, 2, 1.0)]) for name in ("aaaa", "bbbb", "cccc")])
    reading = Reading(feature_sizes=SIZES, on_corrupt="quarantine")
    options = {"reading": reading, "memory_budget": budget}
    shards = pack_shards(tmp_path / "index", [str(file)], reading)
    damage(file, file.stat().st_size // 2)
    for _ in range(2):  # the index fits the framing: every run meets the damage again, none ends by it
        report = ReadReport()
        videos = load_videos(shards, report=report, **options)
        assert videos.damaged(np.arange(3)).tolist() == [False, True, False]
        assert (videos.video_ids, videos.num_frames.tolist()) == (["aaaa", "bbbb", "cccc"], [3, 3, 3])
        assert len(videos.read(1)) == 0
        labels, ratings = videos.annotations(1)
        assert (len(labels), ratings) == (0, None)
        assert [video.video_id for video in videos] == ["aaaa", "cccc"]
        assert [(entry.record, entry.num_records) for entry in report.quarantined] == [(1, 1)]
        _shared.clear()
    assert caplog.text.count("set aside") == 2
    with pytest.raises(CorruptShardError, match="more than 0 records are damaged"):
        load_videos(shards, report=ReadReport(max_quarantined=0), **options).damaged(np.arange(3))


def test_the_number_of_a_record_counts_those_set_aside_before_it(tmp_path):
    file = tmp_path / "a.tfrecord"
    write_records(file, [b"junk", b"junk", encode(make_video("aaaa", 3)), encode(make_video("bbbb", 3))])
    videos = IndexedVideos([build_index(str(file), Reading(feature_sizes=SIZES, on_corrupt="quarantine"))])
    damage(file, file.stat().st_size - 10)
    with pytest.raises(CorruptShardError, match="record 3 at byte"):
        videos.read(1)


def test_f15_a_shard_cut_short_while_it_is_open_is_named(tmp_path):
    """A mapped file would end the process by SIGBUS here."""
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video("aaaa", 300), make_video("bbbb", 3000, [1])])
    videos = IndexedVideos([build_index(str(file), Reading(feature_sizes=SIZES))])
    videos.read_windows([0, 1], [0, 0], 5)
    os.truncate(file, file.stat().st_size // 2)
    assert len(videos.read(0)) == 300
    for attempt in (
        lambda: videos.read(1),
        lambda: videos.read(1, 2990, 5),
        lambda: videos.read_windows([0, 1], [0, 2990], 5),
        lambda: IndexedVideos(videos.parts.indices).read(1),
    ):
        with pytest.raises(
            CorruptShardError, match=r"a\.tfrecord: record .*(truncated while it was open|it has .* bytes)"
        ):
            attempt()


def test_f15_a_shard_cut_short_before_a_record_was_verified_is_named(tmp_path):
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video("aaaa", 3), make_video("bbbb", 3000)])
    videos = IndexedVideos([build_index(str(file), Reading(feature_sizes=SIZES))])
    videos.read(0)  # the shard is open
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CorruptShardError, match=r"record 1 at byte \d+: truncated while it was open"):
        videos.read(1, 0, 1)


def test_frames_that_are_overwritten_after_they_were_verified_are_noticed(tmp_path):
    file = tmp_path / "a.tfrecord"
    write_shard(file, [make_video("aaaa", 30)])
    videos = IndexedVideos([build_index(str(file), Reading(feature_sizes=SIZES))])
    videos.read(0)
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    for attempt in (lambda: videos.read(0, 3, 5), lambda: videos.read_windows([0, 0], [3, 4], 5)):
        with pytest.raises(CorruptShardError, match="has changed since it was indexed"):
            attempt()


@pytest.mark.parametrize("sizes", [(12, 0), (0, 12)])
@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_shards_of_one_feature_alone_are_read(tmp_path, sizes, budget):
    video = make_video("aaaa", 7, [1], [(5, 2, 1.0)])
    canonical = encode(video, sizes)
    uri = write_records(tmp_path / "a.tfrecord", [canonical, canonical + ODD_TAIL])
    videos = load_videos([uri], Reading(feature_sizes=sizes), memory_budget=budget)
    assert [same_video(found, video) for found in videos] == [True, True]
    assert np.array_equal(videos.read_windows([0, 1], [1, 2], 3)[1], video.frames[2:5])
    both = write_shard(tmp_path / "b.tfrecord", [video])
    only = load_videos(
        [both], Reading(feature_sizes=(8, 0)), memory_budget=budget
    )  # what is not configured is left alone
    assert np.array_equal(only.read(0), video.frames[:, :8])
