import json
import os
from pathlib import Path

import pytest

from tests.data.factory import SIZES, make_video, write_shard, write_split
from yt8m_assets.data.dataset import scan
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.scan import describe_shard, scan_shards
from yt8m_assets.data.dataset.shards import ShardManifest, expand_patterns, list_shards, shard_names
from yt8m_assets.errors import CorruptShardError, DataError, MissingDataError


class CountingProgress:
    """Notes what it is told."""

    def __init__(self):
        self.total, self.done, self.resumed, self.unit = None, 0, 0, ""

    def task(self, title, total=None, unit="it"):
        self.total, self.unit = total, unit
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def resume(self, count):
        self.done = self.resumed = count

    def advance(self, count=1):
        self.done += count


def test_patterns_are_expanded_once_and_sorted(tmp_path):
    uris = write_split(tmp_path, [1, 1, 1])
    pattern = str(tmp_path / "train*.tfrecord")
    assert expand_patterns([pattern, uris[1], "file://" + uris[0]]) == uris
    assert expand_patterns(pattern) == uris
    odd = write_shard(tmp_path / "train[1].tfrecord", [make_video("abcd", 1)])
    assert expand_patterns(odd) == [odd]


def test_one_shard_has_one_absolute_name_however_it_is_spelled(tmp_path, monkeypatch):
    uris = write_split(tmp_path, [1, 1])
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    spelled = [
        "*.tfrecord",
        "./train0000.tfrecord",
        "sub/../train0000.tfrecord",
        f"file://{tmp_path}//train0001.tfrecord",
    ]
    assert expand_patterns(spelled) == uris
    assert list(list_shards("**/train0000.tfrecord")) == uris[:1]


def test_a_bracket_in_a_name_that_exists_is_meant_literally(tmp_path):
    (inside,) = write_split(tmp_path / "run[1]", [1])
    write_split(tmp_path / "run1", [1, 1])
    assert expand_patterns(str(tmp_path / "run[1]" / "*.tfrecord")) == [inside]
    assert len(expand_patterns(str(tmp_path / "run[12]" / "*.tfrecord"))) == 2


def test_a_pattern_without_a_match_names_the_nearest_folder(tmp_path):
    with pytest.raises(MissingDataError, match="is empty or does not exist"):
        expand_patterns(str(tmp_path / "train*"))
    with pytest.raises(MissingDataError, match=f"{tmp_path.name} is empty"):
        expand_patterns(str(tmp_path / "none" / "deeper" / "train*"))


def test_a_version_changes_with_size_and_time_of_change(tmp_path):
    (uri,) = write_split(tmp_path, [1])
    (before,) = list_shards(uri).values()
    os.utime(uri, ns=(1, 1))
    (after,) = list_shards(uri).values()
    assert after.version == f"{Path(uri).stat().st_size} mtime_ns:1" != before.version


def test_shards_are_named_by_as_many_folders_as_tell_them_apart():
    uris = [
        "/a/2/validate00.tfrecord",
        "/a/3/validate00.tfrecord",
        "/a/2/train00.tfrecord",
        "gs://b/2/train00.tfrecord",
    ]
    assert list(shard_names(uris).values()) == [
        "2/validate00.tfrecord",
        "3/validate00.tfrecord",
        "a/2/train00.tfrecord",
        "b/2/train00.tfrecord",
    ]
    moved = [uri.replace("/a/", "/mnt/other/place/") for uri in uris[:3]]
    assert list(shard_names(moved).values()) == list(shard_names(uris[:3]).values())
    assert list(shard_names(uris[::-1])) == list(shard_names(uris)), "the order does not depend on the listing's"
    ends_alike = ["/x/s.tfrecord", "/y/x/s.tfrecord"]
    assert sorted(shard_names(ends_alike).values()) == ["/x/s.tfrecord", "y/x/s.tfrecord"]


def manifest(tmp_path):
    uris = write_split(tmp_path, [3, 1])
    indices = scan_shards(uris, Reading(feature_sizes=SIZES))
    return uris, ShardManifest(
        shards=tuple(describe_shard(i, Path(i.uri).name, number == 1) for number, i in enumerate(indices))
    )


def test_a_manifest_survives_its_text(tmp_path):
    uris, shards = manifest(tmp_path)
    read = ShardManifest.from_json(shards.to_json())
    assert str(tmp_path) not in shards.to_json(), "no place is published"
    named = dict(zip(["train0000.tfrecord", "train0001.tfrecord"], uris, strict=True))
    assert read.located(named, list_shards(uris)) == shards
    assert shards.uris() == uris
    assert (shards.uris(held_out=False), shards.uris(held_out=True)) == (uris[:1], uris[1:])
    assert (shards.total("num_videos"), shards.total("num_videos", held_out=True)) == (4, 1)
    assert shards.shards[0].name == "train0000.tfrecord"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"schema": 2, "shards": [{"uri": 1}], "quarantined": [], "notes": {}}',
        '{"schema": 2, "shards": [], "quarantined": [], "notes": null}',
        b"\xff",
    ],
)
def test_a_damaged_manifest_is_named(text):
    with pytest.raises(DataError, match=r"x/shards\.json: not a shard manifest"):
        ShardManifest.from_json(text, "x/shards.json")


def test_another_schema_is_refused(tmp_path):
    content = json.loads(manifest(tmp_path)[1].to_json()) | {"schema": 3}
    with pytest.raises(DataError, match="written as schema 3, this version reads 2"):
        ShardManifest.from_json(json.dumps(content))


def test_scanning_counts_bytes_as_it_goes(tmp_path, monkeypatch):
    progress = CountingProgress()
    monkeypatch.setattr(scan, "_MEGABYTE", 100)
    uris = write_split(tmp_path, [1, 2, 3])
    indices = scan_shards(uris, Reading(feature_sizes=SIZES), progress=progress)
    assert [len(index) for index in indices] == [1, 2, 3]
    size = sum(Path(uri).stat().st_size for uri in uris)
    assert (progress.total, progress.done, progress.unit) == (-(-size // 100), -(-size // 100), "MB")


def test_processes_give_the_same_and_pass_errors_on(tmp_path):
    uris = write_split(tmp_path, [1, 2, 3])
    alone = scan_shards(uris, Reading(feature_sizes=SIZES))
    together = scan_shards(uris, Reading(feature_sizes=SIZES), num_workers=2)
    assert [index.to_bytes() for index in alone] == [index.to_bytes() for index in together]
    path = tmp_path / "train0001.tfrecord"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CorruptShardError, match=r"train0001\.tfrecord: record 1 at byte \d+: truncated"):
        scan_shards(uris, Reading(feature_sizes=SIZES), num_workers=2)
