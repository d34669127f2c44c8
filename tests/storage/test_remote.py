"""Real gcsfs against an emulator of Google Cloud Storage on loopback."""

import pytest

from tests.data.factory import GOLDEN, SIZES, make_video, same_video, write_shard
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.shards import expand_patterns, list_shards
from yt8m_assets.data.records.framing import local_file
from yt8m_assets.errors import ConfigError, MissingDataError
from yt8m_assets.storage import remote


@pytest.fixture
def bucket(emulator, monkeypatch, tmp_path):
    """The emulator's bucket, with a cache of this test."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    monkeypatch.setenv("HOME", str(tmp_path))
    files, _ = remote.open_filesystem("gs://yt/x")
    return files


def test_shards_are_listed_read_and_trained_on(bucket, tmp_path):
    for number in range(3):
        local = write_shard(tmp_path / f"s{number}", [make_video(f"vid{number}", 6, [number])])
        bucket.put_file(local, f"yt/split/train000{number}.tfrecord")
    uris = expand_patterns("gs://yt/split/train*.tfrecord")
    assert uris == [f"gs://yt/split/train000{number}.tfrecord" for number in range(3)]
    videos = [video for uri in uris for video in read_shard(uri, feature_sizes=SIZES)]
    assert all(same_video(video, make_video(f"vid{number}", 6, [number])) for number, video in enumerate(videos))
    held = load_videos(uris, Reading(feature_sizes=SIZES))
    dataset = PretrainingDataset(held, num_classes=5, batch_size=3, window_frames=5)
    assert sorted(next(iter(dataset)).video_ids) == ["vid0", "vid1", "vid2"]
    assert list(list_shards(uris[:2])) == uris[:2]


def test_a_large_object_is_fetched_in_ranges(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 50_000)
    content = (GOLDEN / "frame_test.tfrecord").read_bytes()
    bucket.put_file(GOLDEN / "frame_test.tfrecord", "yt/large")
    remote.fetch_to("gs://yt/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert bucket.cat_file("yt/large") == content
    assert bucket.cat_file("yt/large", 100, 200) == content[100:200]


def test_a_copy_is_kept_until_the_object_changes(bucket, tmp_path):
    bucket.pipe_file("yt/a/one", b"first")
    path = local_file("gs://yt/a/one")
    written = path.stat().st_ino
    assert local_file("gs://yt/a/one").stat().st_ino == written
    bucket.pipe_file("yt/a/one", b"other")
    assert local_file("gs://yt/a/one").read_bytes() == b"other"


def test_a_leftover_of_a_dead_process_goes(bucket, tmp_path):
    bucket.pipe_file("yt/a/two", b"content")
    path = local_file("gs://yt/a/two")
    leftover = path.with_name(f".{path.name}.tmp")
    leftover.write_bytes(b"half")
    path.unlink()
    assert local_file("gs://yt/a/two").read_bytes() == b"content"
    assert not leftover.exists()


def test_objects_are_listed_and_deleted(bucket):
    bucket.pipe_file("yt/d/x/1", b"1", mode="create")
    bucket.pipe_file("yt/d/2", b"2")
    assert remote.list_folder("gs://yt/d") == ["2", "x"]
    assert list(remote.glob_uris("gs://yt/d/*")) == ["gs://yt/d/2"]
    assert list(remote.glob_uris("gs://yt/d/**")) == ["gs://yt/d/2", "gs://yt/d/x/1"]
    assert remote.glob_uris("gs://yt/d/2") == {"gs://yt/d/2": remote.stat("gs://yt/d/2")}
    with pytest.raises(MissingDataError, match="is a folder"):
        remote.stat("gs://yt/d/x")
    bucket.rm("yt/d", recursive=True)
    assert not bucket.exists("yt/d")
    bucket.rm("yt/d")
    assert remote.list_folder("gs://yt/d") == []
    with pytest.raises(MissingDataError, match="gs://yt/d/2: no such object"):
        remote.stat("gs://yt/d/2")


@pytest.mark.parametrize("uri", ["s3://bucket/x", "gs://", "ftp://x"])
def test_other_schemes_are_refused(uri):
    with pytest.raises(ConfigError, match="use a local path or gs://"):
        remote.parse_uri(uri)
