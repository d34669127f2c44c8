import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from yt8m_assets.data import read_shard
from yt8m_assets.data.simulation import SimulationConfig, dataset_paths, truth, write_dataset
from yt8m_assets.data.simulation.config import CONTEXT_SWITCHES, SWITCH_FIELDS
from yt8m_assets.data.simulation.dataset import shard_name
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import NullProgress

CONFIG = SimulationConfig(
    num_classes=20,
    num_rated_classes=8,
    num_groups=4,
    num_train_videos=6,
    num_validate_videos=7,
    num_test_videos=5,
    num_train_shards=2,
    num_validate_shards=3,
    num_test_shards=2,
    min_seconds=20,
    max_seconds=40,
)
DEFAULT_BYTES = "8e17a2a1649c7e932705a0d7b20e949ead41d37ebb1b0cd15f7c9a3109d11609"
"""Of the shards of `CONFIG` with labels, as they were before there were switches."""


def digests(root):
    files = sorted(f for f in root.rglob("*") if f.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("simulation")
    return root, write_dataset(CONFIG, root)


def read(paths):
    return [list(read_shard(str(path))) for path in paths]


def test_the_layout_is_that_of_the_real_dataset(written):
    root, paths = written
    assert sorted(digests(root)) == [
        "2/frame/train/train00.tfrecord",
        "2/frame/train/train10.tfrecord",
        "2/frame/validate/validate00.tfrecord",
        "2/frame/validate/validate10.tfrecord",
        "2/frame/validate/validate20.tfrecord",
        "3/frame/test/test00.tfrecord",
        "3/frame/test/test10.tfrecord",
        "3/frame/validate/validate00.tfrecord",
        "3/frame/validate/validate10.tfrecord",
        "3/frame/validate/validate20.tfrecord",
        "segment_label_ids.csv",
        "simulation.json",
        "truth/test_ratings.csv",
        "vocabulary.csv",
    ]
    assert paths == dataset_paths(CONFIG, root)
    assert shard_name("validate", 248) == "validate04"  # the 249th of SPEC section 8's order
    assert shard_name("validate", 299) == "validateP4"


def test_shards_read_back_as_frames_labels_and_ratings(written):
    _, paths = written
    train, validate, segments, test = map(read, (paths.train, paths.validate, paths.segments, paths.test))
    everything = [v for shards in (train, validate, test) for shard in shards for v in shard]
    assert [len(shard) for shard in train + validate + test] == [3, 3, 3, 2, 2, 3, 2]
    assert len({v.video_id for v in everything}) == 18
    for video in everything:
        assert re.fullmatch(r"[A-Za-z0-9_-]{4,11}", video.video_id)
        assert video.frames.dtype == np.uint8
        assert 20 <= len(video.frames) <= 40
        assert video.frames.shape[1] == 1152
        assert video.segments is None
    assert all(len(v.labels) == 0 for shard in test for v in shard)
    drawn = {split: scripts(split) for split in ("train", "validate")}
    assert {v.video_id: tuple(v.labels) for shard in train for v in shard} == {
        name: script.labels for name, script in drawn["train"].items()
    }
    ratings = {name: script.ratings for name, script in drawn["validate"].items()}
    assert sorted(map(len, ratings.values())) == [0, 5, 5, 5, 10, 15, 15]  # five for each rated label
    assert {v.video_id: rated(v) for shard in segments for v in shard} == ratings


def scripts(split):
    """Video id -> what was drawn for it, of every shard."""
    world, shards = build_world(CONFIG), range(CONFIG.num_shards(split))
    return {s.video_id: s for shard in shards for s, _ in shard_scripts(CONFIG, world, split, shard)}


def rated(video):
    """The ratings of a video as its script has them."""
    found = video.segments
    if found is None:
        return ()
    return tuple(zip(*(values.tolist() for values in (found.start_times, found.class_ids, found.scores)), strict=True))


def test_rated_and_labelled_forms_of_validate_hold_the_same_videos_shard_by_shard(written):
    _, paths = written
    rated = {int(line) for line in paths.segment_label_ids.read_text().split()[1:]}
    for labelled, with_ratings in zip(read(paths.validate), read(paths.segments), strict=True):
        assert [v.video_id for v in labelled] == [v.video_id for v in with_ratings]
        for one, other in zip(labelled, with_ratings, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.labels, other.labels)
            if other.segments is not None:
                assert set(other.segments.class_ids.tolist()) <= set(one.labels.tolist()) & rated
                assert set(other.segments.scores.tolist()) <= {0.0, 1.0}


def test_bytes_depend_neither_on_workers_nor_on_the_order_of_the_splits(written, tmp_path):
    root, _ = written
    write_dataset(CONFIG, tmp_path, splits=("test",))
    write_dataset(CONFIG, tmp_path, splits=("validate", "train"), num_workers=2)
    assert digests(tmp_path) == digests(root)


def test_an_interrupted_write_continues_with_what_is_missing(written, tmp_path):
    root, _ = written
    paths = write_dataset(CONFIG, tmp_path)
    untouched = paths.train[0].stat().st_mtime_ns
    paths.segments[1].unlink()
    paths.test[0].unlink()
    write_dataset(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(root)
    assert paths.train[0].stat().st_mtime_ns == untouched


def test_another_seed_makes_other_videos(written, tmp_path):
    root, _ = written
    other = SimulationConfig(**{**vars(CONFIG), "seed": CONFIG.seed + 1})
    write_dataset(other, tmp_path, splits=("train",))
    assert digests(tmp_path)["2/frame/train/train00.tfrecord"] != digests(root)["2/frame/train/train00.tfrecord"]
    with pytest.raises(ConfigError, match="another config"):
        write_dataset(other, root)


def test_unknown_splits_and_workers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown split 'dev'"):
        write_dataset(CONFIG, tmp_path, splits=("dev",))
    with pytest.raises(ConfigError, match="num_workers"):
        write_dataset(CONFIG, tmp_path, num_workers=0)


def test_progress_counts_every_video(tmp_path):
    counted = []

    class Counting(NullProgress):
        @contextmanager
        def task(self, title, total=None, unit="it"):
            yield SimpleNamespace(advance=counted.append)
            assert sum(counted) == total == 18

    write_dataset(CONFIG, tmp_path, progress=Counting())
    assert counted == [3, 3, 3, 2, 2, 3, 2]


def test_the_vocabulary_has_the_real_one_s_columns(written):
    _, paths = written
    lines = paths.vocabulary.read_text().splitlines()
    assert lines[0] == "Index,TrainVideoCount,KnowledgeGraphId,Name,Vertical1,Vertical2,Vertical3"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(20))
    assert re.fullmatch(r"class 00 \((both|rgb|audio)\)", lines[1].split(",")[3])
    assert paths.segment_label_ids.read_text().splitlines()[0] == "Index"
    assert len(paths.segment_label_ids.read_text().splitlines()) == 9


def test_hidden_ratings_of_the_test_videos_are_written_and_can_be_made_anew(written):
    _, paths = written
    ratings = truth.test_ratings(CONFIG)
    rows = [line.split(",") for line in paths.test_ratings.read_text().splitlines()[1:]]
    assert {(f"{video}:{start}", int(index)): int(score) for video, start, index, score in rows} == ratings
    frames = {v.video_id: len(v.frames) for shard in read(paths.test) for v in shard}
    assert len(ratings) >= 10
    for segment_id, _ in ratings:
        video_id, start = segment_id.split(":")
        assert int(start) + 5 <= frames[video_id]


def test_the_default_is_the_dataset_that_it_always_was(written):
    """Switches that came later take no draw, byte or name while they are off."""
    root, paths = written
    assert hashlib.sha256(b"".join(p.read_bytes() for p in paths.train + paths.segments)).hexdigest() == DEFAULT_BYTES
    assert not set(SWITCH_FIELDS) & set(json.loads((root / "simulation.json").read_text()))


@pytest.mark.parametrize("switch", CONTEXT_SWITCHES)
def test_every_switch_changes_the_bytes_and_the_identity(switch, written, tmp_path):
    config = replace(CONFIG, **CONTEXT_SWITCHES[switch])
    assert config.identity() != CONFIG.identity()
    other = write_dataset(config, tmp_path, ["validate"])
    before = b"".join(path.read_bytes() for path in written[1].segments)
    assert b"".join(path.read_bytes() for path in other.segments) != before
