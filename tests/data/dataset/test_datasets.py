import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from tests.data.dataset.stream_checks import check_restores_everywhere, same_batch, take
from tests.data.factory import SIZES, make_video, sort_options, write_shard, write_split
from tests.data.packing import pack_shards
from yt8m_assets.data import read_shard
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import MemoryVideos, _shared, load_videos
from yt8m_assets.data.dataset.order import ShuffledOrder
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.errors import CheckpointMismatchError, ConfigError, VocabularyError

COUNTS = [7, 1, 5]


def dataset(uris, **changes):
    options = {
        "num_classes": 10, "batch_size": 4, "window_frames": 5, "seed": 3, "shuffle_buffer": 6, "feature_sizes": SIZES,
    }  # fmt: skip
    reading, loading, rest = sort_options(options | changes)
    return PretrainingDataset(load_videos(uris, reading, **loading), **rest)


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("split"), COUNTS)


@pytest.fixture(scope="module")
def videos(uris):
    return {video.video_id: video for uri in uris for video in read_shard(uri, feature_sizes=SIZES)}


def test_windows_are_contiguous_and_short_videos_repeat_their_last_frame(uris, videos):
    for batch in take(dataset(uris), 30):
        for row, video_id in enumerate(batch.video_ids):
            frames = videos[video_id].frames
            start = int(batch.starts[row])
            assert 0 <= start <= max(len(frames) - 5, 0)
            index = np.minimum(start + np.arange(5), len(frames) - 1)
            assert np.array_equal(batch.frames[row].numpy(), frames[index])
            assert batch.labels[row].nonzero().ravel().tolist() == videos[video_id].labels.tolist()
    assert batch.valid.all()
    assert batch.num_frames.tolist() == [5] * 4
    assert (batch.frames.dtype, batch.labels.dtype, batch.num_frames.dtype) == (torch.uint8, torch.float32, torch.int64)
    assert batch.label_weights is None


def test_every_start_of_a_window_is_drawn(uris, videos):
    starts: dict[str, set[int]] = {}
    for batch in take(dataset(uris, batch_size=13), 150):
        for video_id, start in zip(batch.video_ids, batch.starts.tolist(), strict=True):
            starts.setdefault(video_id, set()).add(start)
    assert all(found == set(range(max(len(videos[v].frames) - 5, 0) + 1)) for v, found in starts.items())


def test_whole_videos_are_padded_to_the_longest(uris, videos):
    for batch in take(dataset(uris, window_frames=None, max_frames=9), 7):
        lengths = [min(len(videos[v].frames), 9) for v in batch.video_ids]
        assert batch.num_frames.tolist() == lengths
        assert batch.frames.shape == (4, max(lengths), 12)
        for row, (video_id, length) in enumerate(zip(batch.video_ids, lengths, strict=True)):
            assert np.array_equal(batch.frames[row, :length].numpy(), videos[video_id].frames[:length])
            assert not batch.frames[row, length:].any()
            assert batch.valid[row].tolist() == [place < length for place in range(max(lengths))]


def test_memory_and_streaming_give_the_same(uris):
    streamed, held = dataset(uris), dataset(uris, memory_budget=1 << 20)
    assert [isinstance(each.videos, MemoryVideos) for each in (streamed, held)] == [False, True]
    assert all(same_batch(*pair) for pair in zip(take(streamed, 12), take(held, 12), strict=True))


@pytest.mark.parametrize("changes", [{}, {"window_frames": None}, {"windows_per_video": 3, "batch_size": 5}])
def test_it_restores_at_every_position(uris, changes):
    check_restores_everywhere(lambda: dataset(uris, **changes), 12)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("windows", [1, 2])
def test_each_record_comes_exactly_once_an_epoch_over_all_ranks(uris, num_ranks, windows):
    epochs, total = 4, sum(COUNTS) * windows
    ranks = [
        dataset(uris, rank=r, num_ranks=num_ranks, batch_size=1, windows_per_video=windows) for r in range(num_ranks)
    ]
    rounds = -(-epochs * total // num_ranks)
    taken = [take(rank, rounds) for rank in ranks]
    ids = [taken[rank][number].video_ids[0] for number in range(rounds) for rank in range(num_ranks)]
    for epoch in range(epochs):
        counts = Counter(ids[epoch * total : (epoch + 1) * total])
        assert set(counts.values()) == {windows}
        assert len(counts) == sum(COUNTS)
    assert ids[:total] != ids[total : 2 * total]


def test_windows_of_a_video_lie_as_far_apart_as_the_buffer_allows(tmp_path):
    uris = write_split(tmp_path, [20, 20, 20])
    for buffer, distance in ((16, 20), (60, 60), (1000, 60)):
        stream = dataset(uris, windows_per_video=8, batch_size=16, shuffle_buffer=buffer)
        batches = take(stream, 30)  # an epoch of 480 examples
        assert [len(set(batch.video_ids)) for batch in batches] == [16] * 30
        ids = [name for batch in batches for name in batch.video_ids]
        places = [np.flatnonzero(np.array(ids) == name) for name in set(ids)]
        assert {len(found) for found in places} == {8}
        assert min(int(np.diff(found).min()) for found in places) == distance
        starts = np.concatenate([batch.starts.numpy() for batch in batches])[np.array(ids) == "vid0002"]
        assert len(set(starts.tolist())) > 1
    check_restores_everywhere(lambda: dataset(uris, windows_per_video=8, batch_size=16, shuffle_buffer=16), 33)


def test_only_the_batch_between_two_epochs_may_hold_a_video_twice_one_window_of_each(tmp_path):
    uris = write_split(tmp_path, [20, 20, 5])
    stream = dataset(uris, windows_per_video=3, batch_size=16, shuffle_buffer=16)
    length, crossing = 45 * 3, 0
    for number, batch in enumerate(take(stream, 200)):
        first = length - number * 16 % length  # examples of the epoch in which the batch begins
        parts = [batch.video_ids[:first], batch.video_ids[first:]]
        assert all(len(set(part)) == len(part) for part in parts)
        crossing += len(set(batch.video_ids)) < 16
    assert 0 < crossing < 200 * 16 / length


def test_the_order_of_single_windows_is_as_it_always_was(uris):
    sizes, generator = np.array(COUNTS), np.random.default_rng([3, 0])
    order = ShuffledOrder(sizes, 6, generator)[:]
    (batch,) = take(dataset(uris, batch_size=13), 1)
    assert batch.video_ids == tuple(f"vid{number:04d}" for number in order)


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("changes", [{}, {"window_frames": None}])
def test_training_goes_on_without_a_record_that_was_damaged_since(tmp_path, budget, changes):
    """The order stays, so that a saved position is still good; the next sound video stands for the damaged one."""
    uris = write_split(tmp_path, [6, 6])
    changes = changes | {"on_corrupt": "quarantine", "memory_budget": budget}
    uris = pack_shards(tmp_path / "index", uris, Reading(feature_sizes=SIZES))
    whole = take(dataset(uris, **changes), 9)
    stream = dataset(uris, **changes)
    take(stream, 2)
    state = stream.state_dict()
    _shared.clear()
    path = tmp_path / "train0001.tfrecord"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in vid0011, the last one: the first one stands for it
    path.write_bytes(content)
    resumed = dataset(uris, **changes)
    resumed.load_state_dict(state)
    for batch, before in zip(take(resumed, 7), whole[2:], strict=True):
        expected = tuple("vid0000" if name == "vid0011" else name for name in before.video_ids)
        assert batch.video_ids == expected
    assert any("vid0011" in batch.video_ids for batch in whole[2:])
    _shared.clear()


def test_the_same_seed_gives_the_same_and_another_does_not(uris):
    def ids(seed):
        return [batch.video_ids for batch in take(dataset(uris, seed=seed), 6)]

    assert ids(3) == ids(3) != ids(4)


def test_a_short_window_keeps_records_near_their_shard():
    sizes = np.full(20, 50)
    order = ShuffledOrder(sizes, 100, np.random.default_rng(0))[:]
    assert sorted(order.tolist()) == list(range(1000))
    read_at_once = [len(set((order[first : first + 50] // 50).tolist())) for first in range(0, 1000, 50)]
    assert max(read_at_once) <= 5
    assert len(set(np.diff(order).tolist())) > 100
    full = ShuffledOrder(sizes, 1000, np.random.default_rng(0))[:]
    assert min(len(set((full[first : first + 50] // 50).tolist())) for first in range(0, 1000, 50)) > 10


def test_a_label_outside_the_vocabulary_is_named(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("abcd", 6, [2, 10])])
    with pytest.raises(VocabularyError, match=r"a\.tfrecord: video abcd: labels: class 10 lies outside .* of 10"):
        take(dataset([uri], batch_size=1), 1)


def test_a_state_of_other_data_is_refused_with_the_difference(uris, tmp_path):
    state = json.loads(json.dumps(dataset(uris).state_dict()))
    with pytest.raises(CheckpointMismatchError, match="seed was 3, is 4"):
        dataset(uris, seed=4).load_state_dict(state)
    with pytest.raises(CheckpointMismatchError, match="num_examples was 13, is 12"):
        dataset(uris[::2]).load_state_dict(state)


def test_a_video_without_frames_gives_rows_that_are_not_valid(tmp_path):
    uri = write_shard(tmp_path / "a.tfrecord", [make_video("abcd", 0, [1])])
    for changes in ({"window_frames": 1}, {"window_frames": None}):
        (batch,) = take(dataset([uri], batch_size=1, **changes), 1)
        assert batch.valid.tolist() == [[False]]
        assert batch.frames.shape == (1, 1, 12)
        assert batch.num_frames.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"batch_size": 0}, "batch_size"), ({"rank": 2, "num_ranks": 2}, "rank"), ({"window_frames": 0}, "window_frames"),
     ({"windows_per_video": 0}, "windows_per_video")],
)  # fmt: skip
def test_wrong_options_are_named(uris, changes, field):
    with pytest.raises(ConfigError, match=field):
        dataset(uris, **changes)


def test_defining_a_dataset_needs_no_torch(uris):
    code = (
        "import sys; from yt8m_assets.data.dataset.datasets import PretrainingDataset;"
        "from yt8m_assets.data.dataset.segments import SegmentDataset; import yt8m_assets.data.dataset.inspection;"
        "assert 'torch' not in sys.modules and 'dagster' not in sys.modules and 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
