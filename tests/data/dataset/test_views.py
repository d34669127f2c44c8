"""Which frames a training uses: drawn as the models draw, shipped alone or together."""

import numpy as np
import pytest
import torch

from models import sampling
from tests.data.dataset.stream_checks import same_batch
from tests.data.factory import SIZES, sort_options, write_split
from yt8m_assets.data.dataset.batches import Batch, JointBatch
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.views import View, union

LENGTHS = np.array([30, 1, 0, 7, 12])
STARTS = np.zeros(5, np.int64)
UNIFORMS = np.random.default_rng(0).random((40, 5), dtype=np.float32)
VIEWS = (
    View(window_frames=5, sampling="sequence", num_draws=5),
    View(window_frames=5, sampling="frames", num_draws=3),
    View(window_frames=8, sampling="frames", num_draws=60),
    View(sampling="sequence", num_draws=5),
    View(sampling="frames", num_draws=2),
    View(sampling="frames", num_draws=6),
    View(sampling="frames", num_draws=60),
    View(window_frames=3),
    View(),
)


def test_draws_are_those_of_the_models() -> None:
    lengths, uniforms = torch.from_numpy(LENGTHS), torch.from_numpy(UNIFORMS)
    few = View(sampling="frames", num_draws=7).look(LENGTHS, STARTS, UNIFORMS)
    assert np.array_equal(few.rows, sampling.random_frames(uniforms[:7].T, lengths).numpy())
    many = View(sampling="frames", num_draws=40).look(LENGTHS, STARTS, UNIFORMS)
    assert many.frame_index is not None
    assert np.array_equal(many.frame_index, sampling.random_frames(uniforms.T, lengths).numpy())
    assert many.rows.shape == (5, 30)
    run = View(sampling="sequence", num_draws=5).look(LENGTHS, STARTS, UNIFORMS)
    assert np.array_equal(run.rows, sampling.random_sequence(uniforms[:1].T, lengths, 5).numpy())
    assert few.valid[:, 0].tolist() == [True, True, False, True, True]


def test_every_frame_is_drawn_and_none_past_the_end() -> None:
    uniforms = np.random.default_rng(1).random((500, 5), dtype=np.float32)
    uniforms[0] = np.float32(1) - np.float32(2**-24)  # the largest there is: times a length it may round up to it
    look = View(sampling="frames", num_draws=500).look(LENGTHS, STARTS, uniforms)
    assert look.frame_index is not None
    for row, length in enumerate(LENGTHS.tolist()):
        assert set(look.frame_index[row].tolist()) == set(range(max(length, 1)))


def dataset(uris: list[str], *views: View, memory: bool = False) -> PretrainingDataset:
    reading, loading, _ = sort_options({"feature_sizes": SIZES, "memory_budget": 10**9 if memory else 0})
    videos = load_videos(uris, reading, **loading)
    return PretrainingDataset(videos, num_classes=10, batch_size=6, seed=3, shuffle_buffer=8, views=views)


@pytest.fixture(scope="module")
def uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_split(tmp_path_factory.mktemp("split"), [7, 1, 5])


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("views", [VIEWS, VIEWS[:2], VIEWS[:3], VIEWS[4:6], VIEWS[7:], (VIEWS[3], VIEWS[4])])
def test_parts_of_a_joint_batch_are_what_each_view_reads_alone(
    uris: list[str], views: tuple[View, ...], memory: bool
) -> None:
    streams = [dataset(uris, view, memory=memory) for view in views]
    joint = streams[0].joined(streams[1:])
    for position in (0, 6, 78):
        batch = joint.batch_at(position)
        assert isinstance(batch, JointBatch)
        for number, stream in enumerate(streams):
            own = stream.batch_at(position)
            assert isinstance(own, Batch)
            assert same_batch(batch.parts[number].take(batch.batch), own), views[number]


def test_of_a_long_video_only_what_is_drawn_is_shipped(uris: list[str]) -> None:
    few, more, whole = dataset(uris, VIEWS[4]), dataset(uris, VIEWS[5]), dataset(uris, VIEWS[8])
    assert few.batch_at(0).frames.shape[1] == 2
    assert few.batch_at(0).frame_index.tolist() == [[0, 1]] * 6
    both = few.joined([more]).batch_at(0)
    assert both.batch.frames.shape[1] == 6, "the first draws of both are the same"
    assert torch.equal(both.batch.frames, more.batch_at(0).frames)
    assert few.joined([whole]).batch_at(0).batch.frames.shape == whole.batch_at(0).frames.shape
    frames, index = whole.batch_at(0).frames, View.look(VIEWS[4], *drawn(few, 0)).rows
    assert np.array_equal(few.batch_at(0).frames.numpy(), np.take_along_axis(frames.numpy(), index[:, :, None], 1))


def drawn(stream: PretrainingDataset, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = stream.batch_at(position).video_ids
    lengths = stream.videos.num_frames[[stream.videos.video_ids.index(name) for name in names]]
    return lengths, np.zeros_like(lengths), stream._uniforms(position)


def test_draws_depend_on_seed_and_position_and_not_on_how_ranks_split_them(uris: list[str]) -> None:
    whole = dataset(uris, VIEWS[6])._uniforms(12)
    assert not np.array_equal(whole, dataset(uris, VIEWS[6])._uniforms(18))
    ranks = [
        PretrainingDataset(
            load_videos(uris, sort_options({"feature_sizes": SIZES})[0]), num_classes=10, batch_size=3, seed=3,
            shuffle_buffer=8, views=(VIEWS[6],), rank=rank, num_ranks=2,
        )
        for rank in range(2)
    ]  # fmt: skip
    alone = dataset(uris, VIEWS[6]).batch_at(12)
    parts = [rank.batch_at(12) for rank in ranks]
    assert torch.equal(torch.cat([part.frame_index for part in parts]), alone.frame_index)


def test_a_union_reads_no_frame_twice() -> None:
    looks = [view.look(LENGTHS, STARTS, UNIFORMS) for view in (VIEWS[4], VIEWS[5], VIEWS[7])]
    rows, valid, places = union(looks, LENGTHS, 30)
    assert rows.shape == valid.shape == (5, 6 + 3)
    assert places == [slice(0, 2), slice(0, 6), slice(6, 9)]
    rows, _, places = union(looks, LENGTHS, 9)
    assert rows.shape == (5, 9)
    assert isinstance(places[0], np.ndarray)
