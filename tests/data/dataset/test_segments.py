import json
from dataclasses import replace

import numpy as np
import pytest

from tests.data.dataset.stream_checks import check_restores_everywhere, same_batch, take
from tests.data.factory import GOLDEN, SIZES, make_video, write_shard
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.ratings import collect_ratings
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import Mining, SegmentDataset, SegmentTable
from yt8m_assets.data.dataset.views import View
from yt8m_assets.data.dataset.windows import dequantise
from yt8m_assets.errors import ConfigError, VocabularyError

SEGMENTS = str(GOLDEN / "frame_segment_labels.tfrecord")
TINY = Reading(feature_sizes=SIZES)
FEW, MANY = View(sampling="frames", num_draws=3), View(sampling="frames", num_draws=40)


@pytest.mark.parametrize("budget", [0, 1 << 24])
def test_examples_are_the_originals(budget):
    arrays = np.load(GOLDEN / "out_frame_segment_labels.npz")
    expected = json.loads((GOLDEN / "out_frame_segment_labels.json").read_text())
    table = SegmentTable(load_videos([SEGMENTS]), num_classes=3862, memory_budget=budget)
    assert table.in_memory == bool(budget)
    assert table.video_ids == [video_id for entry in expected for video_id in entry["ids"]]
    assert table.starts.tolist() == [40, 10, 75, 295, 0, 150, 20, 5, 100]
    first = 0
    for number, entry in enumerate(expected):
        batch = table.batch(np.arange(first, first + len(entry["ids"])))
        first += len(batch)
        features = dequantise(batch.frames.numpy())
        features[~batch.valid.numpy()] = 0
        assert np.allclose(features.astype(np.float64).sum(-1), arrays[f"{number}/row_sums"], atol=1e-3)
        for name, tensor in (("labels", batch.labels), ("label_weights", batch.label_weights)):
            assert np.array_equal(tensor.numpy().nonzero(), arrays[f"{number}/{name}_nonzero_idx"].T)
            assert np.array_equal(tensor.numpy()[tensor.numpy() > 0], arrays[f"{number}/{name}_nonzero_val"])
        assert batch.num_frames.tolist() == entry["num_frames"]
    assert first == len(table)


def tiny(tmp_path, **changes):
    videos = [
        make_video("aaaa", 12, [1], [(5, 1, 1.0), (0, 2, 0.0), (5, 2, 0.0)]),
        make_video("bbbb", 7, [1]),
        make_video("cccc", 7, [1], [(5, 3, 1.0), (40, 1, 0.0)]),
    ]
    uri = write_shard(tmp_path / "a.tfrecord", videos)
    of_table = {
        name: changes.pop(name) for name in ("num_classes", "memory_budget", "segment_classes") if name in changes
    }
    table = SegmentTable(load_videos([uri], TINY), **({"num_classes": 5} | of_table))
    return videos, SegmentDataset(table, **({"batch_size": 3, "seed": 1} | changes))


def test_negatives_are_mined_among_the_rated_classes_that_nothing_of_the_video_names(tmp_path):
    """By hand. aaaa: label 1, ratings of 1 and 2; cccc: label 1, ratings of 3 and 1; class 4 is rated nowhere."""
    mining = Mining(classes=np.array([0, 1, 2, 3]), positive=1.5, negative=0.5)
    table = tiny(tmp_path)[1].table
    labels, weights = table.annotations(np.arange(4), mining)
    assert labels.tolist() == table.annotations(np.arange(4))[0].tolist()
    assert weights.tolist() == [
        [0.25, 1.5, 1.0, 0.25, 0.0],  # aaaa:5: 1 is there, 2 is not
        [0.25, 0.0, 1.0, 0.25, 0.0],  # aaaa:0
        [0.25, 0.0, 0.25, 1.5, 0.0],  # cccc:5
        [0.25, 1.0, 0.25, 0.0, 0.0],  # cccc:40
    ]
    fewer = table.annotations(np.arange(4), replace(mining, classes=np.array([1, 2, 3])))[1]
    assert fewer[:, [2, 3]].tolist() == [[1.0, 0.5], [1.0, 0.5], [0.5, 1.5], [0.5, 0.0]]
    batch = SegmentDataset(table, batch_size=4, seed=1, mining=mining).batch_at(0)
    order = [table.segment_ids.index(f"{v}:{s}") for v, s in zip(batch.video_ids, batch.starts.tolist(), strict=True)]
    assert batch.label_weights.tolist() == weights[order].tolist()


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_rows_beyond_the_video_are_not_valid(tmp_path, budget):
    videos, dataset = tiny(tmp_path, memory_budget=budget)
    frames, valid = dataset.table.frames(np.arange(4))
    assert dataset.table.segment_ids == ["aaaa:5", "aaaa:0", "cccc:5", "cccc:40"]
    assert np.array_equal(frames[0], videos[0].frames[5:10])
    assert valid.tolist() == [[True] * 5, [True] * 5, [True] * 2 + [False] * 3, [False] * 5]
    batch = dataset.table.batch(np.arange(4))
    assert np.array_equal(batch.frames[2, :2].numpy(), videos[2].frames[5:7])
    assert not batch.frames[2, 2:].any()
    assert batch.valid[2].tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_it_restores_at_every_position(tmp_path, budget):
    check_restores_everywhere(lambda: tiny(tmp_path, memory_budget=budget)[1], 9)


def test_every_segment_comes_once_an_epoch(tmp_path):
    _, dataset = tiny(tmp_path, batch_size=2)
    ids = [
        f"{v}:{s}" for batch in take(dataset, 6) for v, s in zip(batch.video_ids, batch.starts.tolist(), strict=True)
    ]
    for epoch in range(3):
        assert sorted(ids[epoch * 4 : epoch * 4 + 4]) == ["aaaa:0", "aaaa:5", "cccc:40", "cccc:5"]


def test_a_table_is_shared_between_datasets(tmp_path):
    _, dataset = tiny(tmp_path)
    other = SegmentDataset(dataset.table, batch_size=3, seed=1)
    assert all(same_batch(*pair) for pair in zip(take(dataset, 3), take(other, 3), strict=True))


def test_starts_far_apart_do_not_collide(tmp_path):
    first = make_video("aaaa", 7, [], [(0, 1, 1.0), (2**32, 2, 0.0)])
    uri = write_shard(tmp_path / "a.tfrecord", [first, make_video("bbbb", 7, [], [(0, 3, 1.0)])])
    table = SegmentTable(load_videos([uri], TINY), num_classes=5)
    assert table.segment_ids == ["aaaa:0", f"aaaa:{2**32}", "bbbb:0"]
    assert table.annotations(np.arange(3))[0].nonzero()[1].tolist() == [1, 3]


def test_frames_are_held_where_they_fit_to_the_byte(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("aaaa", 9, [], [(0, 1, 1.0), (5, 2, 0.0)])])
    size = 2 * 5 * sum(SIZES)
    for budget in (size - 1, size):
        table = SegmentTable(load_videos([uri], TINY), num_classes=5, memory_budget=budget)
        assert table.in_memory == (budget == size)


def test_ratings_are_listed_once(tmp_path):
    _, ratings = collect_ratings(load_videos([SEGMENTS]), num_classes=3862)
    assert len(ratings) == 12
    assert ratings.segment_ids[:3] == ["sega:40", "sega:40", "sega:10"]
    assert ratings.class_ids[:6].tolist() == [3, 7, 3, 8, 7, 3861]
    assert ratings.scores[:6].tolist() == [1, 0, 1, 1, 0, 1]
    uri = write_shard(tmp_path / "b.tfrecord", [make_video("aaaa", 6, [], [(0, 1, 1.0), (0, 1, 0.0), (0, 2, 1.0)])])
    _, twice = collect_ratings(load_videos([uri], TINY))
    assert (twice.num_repeated, twice.scores.tolist(), twice.class_ids.tolist()) == (1, [0.0, 1.0], [1, 2])


def test_a_class_that_is_not_rated_is_named(tmp_path):
    with pytest.raises(VocabularyError, match="video aaaa: segment_labels: class 2 is not a rated class"):
        tiny(tmp_path, segment_classes=np.array([1, 3]))
    with pytest.raises(VocabularyError, match="video cccc: segment_labels: class 3 lies outside the vocabulary of 3"):
        tiny(tmp_path, num_classes=3)


@pytest.mark.parametrize("views", [(FEW,), (FEW, MANY, View())])
def test_views_take_their_frames_of_a_segment(views):
    table = SegmentTable(load_videos([SEGMENTS]), num_classes=3862, memory_budget=1 << 24)
    plain = next(iter(SegmentDataset(table, batch_size=9, seed=2)))
    batch = SegmentDataset(table, batch_size=9, seed=2, views=views).batch_at(0)
    parts = [batch] if len(views) == 1 else [part.take(batch.batch) for part in batch.parts]
    assert not plain.valid.all()  # one segment lies past its video's end
    for view, part in zip(views, parts, strict=True):
        uniforms = SegmentDataset(table, batch_size=9, seed=2, views=views)._uniforms(0)
        look = view.look(plain.num_frames.numpy(), np.zeros(9, np.int64), uniforms)
        assert np.array_equal(part.frames.numpy(), np.take_along_axis(plain.frames.numpy(), look.rows[:, :, None], 1))
        assert np.array_equal(part.valid.numpy(), np.take_along_axis(plain.valid.numpy(), look.rows, 1))
        assert part.starts.tolist() == plain.starts.tolist()
        assert part.frames.shape[1] == (3 if view is FEW else 5)


def test_a_segment_with_its_whole_video_says_where_it_starts(tmp_path):
    """aaaa's segments are at 5 and 0, cccc's at 5 and 40, past its end; labels and weights are the segments' own."""
    mining = Mining(classes=np.array([0, 1, 2, 3]), positive=1.5, negative=0.5)
    videos, dataset = tiny(tmp_path, batch_size=4, views=(View(sampling="video"),), mining=mining)
    batch = next(iter(dataset))
    plain = dataset.table.batch(np.array([dataset.table.segment_ids.index(name) for name in names(batch)]), mining)
    assert batch.frames.shape == (4, 12, 12)
    assert sorted(names(batch)) == ["aaaa:0", "aaaa:5", "cccc:40", "cccc:5"]
    assert batch.frame_index.tolist() == [[start] for start in batch.starts.tolist()]
    for row, video_id in enumerate(batch.video_ids):
        video = next(video for video in videos if video.video_id == video_id)
        length = len(video.frames)
        assert np.array_equal(batch.frames[row, :length].numpy(), video.frames)
        assert not batch.frames[row, length:].any()
        assert batch.valid[row].tolist() == [second < length for second in range(12)]
        assert batch.num_frames[row] == length
    assert np.array_equal(batch.labels, plain.labels)
    assert np.array_equal(batch.label_weights, plain.label_weights)


def names(batch):
    return [f"{video}:{start}" for video, start in zip(batch.video_ids, batch.starts.tolist(), strict=True)]


def test_a_stream_of_whole_videos_is_another_stream_for_one_model(tmp_path):
    _, whole = tiny(tmp_path, views=(View(sampling="video"),))
    _, plain = tiny(tmp_path)
    assert whole.identity() != plain.identity()
    with pytest.raises(ConfigError, match="read for one model at a time"):
        tiny(tmp_path, views=(View(sampling="video"), FEW))


def test_whole_videos_are_restored_everywhere(tmp_path):
    def make():
        return tiny(tmp_path, batch_size=2, views=(View(sampling="video"),))[1]

    check_restores_everywhere(make, 5)
