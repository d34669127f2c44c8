"""The published index: small, exact, read a shard at a time, and sent to other processes by its place."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.data.factory import SIZES, encode, make_video, write_records, write_split
from tests.data.packing import pack_shards
from yt8m_assets.data.dataset import packed as packed_module
from yt8m_assets.data.dataset.index import NOT_LOCATED, build_index
from yt8m_assets.data.dataset.packed import INDEX_FILE, ROW, PackedIndex, pack, unpack
from yt8m_assets.data.dataset.parts import content_checksum
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import ShardManifest
from yt8m_assets.data.dataset.videos import IndexedVideos
from yt8m_assets.errors import DataError

READING = Reading(feature_sizes=SIZES)


def test_a_video_takes_34_bytes() -> None:
    assert ROW.itemsize == 34


def test_rows_give_back_the_index(tmp_path: Path) -> None:
    for uri in write_split(tmp_path, [1, 5, 9]):
        index = build_index(uri, READING)
        held_out = np.arange(len(index)) % 3 == 1
        rows = pack(index, held_out)
        assert np.array_equal(unpack(rows), index.records)
        assert np.array_equal(rows["id"], index.ids)


@pytest.mark.parametrize("damaged", [[0], [1], [3], [0, 1], [1, 3], [2, 4], [0, 2, 3]])
def test_rows_know_their_place_behind_records_that_were_set_aside(tmp_path: Path, damaged: list[int]) -> None:
    records = [encode(make_video(f"vid{n}", n + 1, [n])) for n in range(5)]
    for number in damaged:
        records[number] = b"junk" * (number + 1)
    uri = write_records(tmp_path / "a.tfrecord", records)
    index = build_index(uri, Reading(feature_sizes=SIZES, on_corrupt="quarantine"))
    assert len(index) == 5 - len(damaged)
    assert np.array_equal(unpack(pack(index, np.zeros(len(index), bool)), index.quarantined), index.records)


@pytest.mark.parametrize(("column", "value"), [("context_length", 2**16), ("context_start", 2**8)])
def test_a_context_out_of_reach_is_read_through_protobuf(tmp_path: Path, column: str, value: int) -> None:
    (uri,) = write_split(tmp_path, [2])
    index = build_index(uri, READING)
    index.records[column][1] = value
    records = unpack(pack(index, np.zeros(2, bool)))
    assert (records["rgb_start"] == NOT_LOCATED).tolist() == [False, True]
    assert np.array_equal(records["num_frames"], index.records["num_frames"])


def test_a_video_with_a_large_context_reads_the_same(tmp_path: Path) -> None:
    ratings = [(5 * (n % 7), n, float(n % 2)) for n in range(9000)]
    video = make_video("big1", 40, list(range(9000)), ratings)
    uri = write_records(tmp_path / "a.tfrecord", [encode(video), encode(make_video("tiny", 3, [1]))])
    direct, published = IndexedVideos([build_index(uri, READING)]), IndexedVideos(pack_shards(tmp_path, [uri], READING))
    for number in range(2):
        assert np.array_equal(direct.read(number), published.read(number))
        assert np.array_equal(direct.annotations(number)[0], published.annotations(number)[0])
    assert np.array_equal(published.read_windows([0, 1, 0], [7, 0, 1], 3), direct.read_windows([0, 1, 0], [7, 0, 1], 3))


@pytest.mark.parametrize("file_bytes", [1, 150, 10**6])
def test_either_side_of_the_hold_out_is_read_from_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """However the rows are cut into files."""
    monkeypatch.setattr(packed_module, "FILE_BYTES", file_bytes)
    uris = write_split(tmp_path, [3, 0, 4, 2])
    whole = IndexedVideos([build_index(uri, READING) for uri in uris])
    held_out_ids = ["vid0001", "vid0003", "vid0007", "vid0008", "none"]
    names = list(whole.video_ids)
    for held_out in (None, True, False):
        found = IndexedVideos(pack_shards(tmp_path / str(held_out), uris, READING, held_out_ids, held_out))
        expected = [n for n, name in enumerate(names) if held_out is None or (name in held_out_ids) == held_out]
        assert found.video_ids == [names[n] for n in expected]
        assert found.num_frames.tolist() == whole.num_frames[expected].tolist()
        for number, original in enumerate(expected):
            assert np.array_equal(found.read(number), whole.read(original))
            assert found.video_ids[number] == names[original]
    files = list((tmp_path / "None" / "index").glob("*.rows"))
    assert len(files) == {1: 4, 150: 3, 10**6: 1}[file_bytes]


def test_ids_are_a_sequence_of_texts(tmp_path: Path) -> None:
    videos = IndexedVideos(pack_shards(tmp_path / "i", write_split(tmp_path, [3, 0, 4]), READING))
    names = [f"vid{number:04d}" for number in range(7)]
    assert videos.video_ids == names
    assert [videos.video_ids[n] for n in range(-7, 7)] == names * 2
    assert videos.video_ids[2:5] == names[2:5]
    assert "vid0006" in videos.video_ids
    assert videos.video_ids.index("vid0004") == 4
    with pytest.raises(IndexError):
        videos.video_ids[7]


def test_another_process_reads_the_index_from_its_files(tmp_path: Path) -> None:
    uris = write_split(tmp_path, [40] * 20)
    videos = IndexedVideos(pack_shards(tmp_path / "i", uris, READING))
    text = pickle.dumps(videos)
    assert len(text) < 20 * 500 + 3 * len(videos), "paths and a byte a video, no columns"
    there = pickle.loads(text)
    assert there.num_frames.tolist() == videos.num_frames.tolist()
    assert np.array_equal(there.read(5), videos.read(5))


def test_what_tells_sets_of_videos_apart_is_what_it_was(tmp_path: Path) -> None:
    """A checkpoint's position is refused where it differs."""
    import zlib

    uris = write_split(tmp_path, [3, 0, 4, 0])
    videos = IndexedVideos(pack_shards(tmp_path / "i", uris, READING))
    lengths = zlib.crc32(videos.num_frames.astype(np.int64).tobytes())
    assert content_checksum(videos) == zlib.crc32("\n".join(videos.video_ids).encode(), lengths)


def test_rows_that_are_missing_are_an_error_with_a_name(tmp_path: Path) -> None:
    (shard,) = pack_shards(tmp_path / "i", write_split(tmp_path, [3]), READING)
    shard.path.write_bytes(shard.path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"0000\.rows: ends before the index of .*train0000\.tfrecord"):
        shard.load()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"files": [], "feature_sizes": [8, 4]}',
        '{"files": [{"name": "a", "num_shards": 9}]}',
        '{"files": [{"name": 3, "num_shards": 1}], "feature_sizes": [8, 4]}',
        '{"files": [{"name": "a", "num_shards": 1}], "feature_sizes": ["x", null]}',
    ],
)
def test_an_index_of_another_list_is_refused(tmp_path: Path, content: str) -> None:
    shards = pack_shards(tmp_path / "i", write_split(tmp_path, [3]), READING)
    (tmp_path / "i" / INDEX_FILE).write_text(content)
    from yt8m_assets.data.dataset.scan import describe_shard

    manifest = ShardManifest(shards=(describe_shard(shards[0].load(), "a"),))
    with pytest.raises(DataError, match="not the index of this list of shards"):
        PackedIndex.read(tmp_path / "i" / INDEX_FILE, manifest)
