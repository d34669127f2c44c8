"""Workers and threads give what the loop itself gives, in the same order."""

import itertools
import os
import signal
from collections import Counter

import pytest

from tests.data.dataset.stream_checks import same_batch, take
from tests.data.factory import SIZES, make_video, sort_options, write_shard, write_split
from yt8m_assets.data.dataset import loading
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.errors import VocabularyError, WorkerCrashError


def dataset(uris, **changes):
    options = {"num_classes": 10, "batch_size": 4, "window_frames": 5, "seed": 3, "feature_sizes": SIZES}
    reading, loading, rest = sort_options(options | changes)
    return PretrainingDataset(load_videos(uris, reading, **loading), **rest)


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("split"), [7, 1, 5])


def test_two_workers_continue_as_the_loop_would(uris):
    expected = take(dataset(uris), 9)
    stream = dataset(uris, num_workers=2)
    stream.load_state_dict(dataset(uris).state_dict() | {"position": 16})
    assert all(same_batch(*pair) for pair in zip(take(stream, 5), expected[4:], strict=True))
    assert stream.position == 36


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_workers_and_ranks_give_each_record_once_an_epoch(uris, num_workers, num_ranks):
    ids = []
    for rank in range(num_ranks):
        options = {"rank": rank, "num_ranks": num_ranks, "batch_size": 13 // num_ranks}
        stream, inline = dataset(uris, num_workers=num_workers, **options), dataset(uris, **options)
        first = take(stream, num_ranks)
        state = stream.state_dict()
        restored = dataset(uris, num_workers=num_workers, **options)
        restored.load_state_dict(state)
        batches = first + take(restored, 3)
        assert all(same_batch(*pair) for pair in zip(batches, take(inline, num_ranks + 3), strict=True))
        ids.append([batch.video_ids for batch in batches])
    stream_ids = [name for group in zip(*ids, strict=True) for part in group for name in part]
    assert sorted(Counter(stream_ids[:13]).values()) == [1] * 13


def test_the_thread_gives_the_same_batches_and_raises_errors(uris, tmp_path, monkeypatch):
    monkeypatch.setattr("yt8m_assets.data.dataset.batches.Batch.pin_memory", lambda batch: batch)  # needs a GPU
    stream = dataset(uris, pin_memory=True)
    assert all(same_batch(*pair) for pair in zip(take(stream, 6), take(dataset(uris), 6), strict=True))
    assert stream.position == 24
    bad = write_shard(tmp_path / "bad.tfrecord", [make_video("abcd", 6, [10])])
    with pytest.raises(VocabularyError):
        take(dataset([bad], pin_memory=True), 1)


@pytest.mark.slow
def test_an_error_in_a_worker_keeps_its_type(tmp_path):
    bad = write_shard(tmp_path / "bad.tfrecord", [make_video("abcd", 6, [10])])
    with pytest.raises(VocabularyError, match="video abcd"):
        take(dataset([bad], num_workers=1), 1)


@pytest.mark.slow
def test_f50_a_killed_worker_ends_the_run_with_its_name(uris, monkeypatch):
    monkeypatch.setattr(loading, "WORKER_TIMEOUT_SECONDS", 20.0)
    stream = dataset(uris, num_workers=1, batch_size=1)
    batches = iter(stream)
    next(batches)
    import multiprocessing

    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashError, match="data-loading worker"):
        list(itertools.islice(batches, 10))
