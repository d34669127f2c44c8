"""Workers and threads give what the loop itself gives, in the same order."""

import itertools
import os
import signal

import pytest

from tests.data.factory import SIZES, make_video, write_shard, write_split
from tests.data.stream_checks import same_batch, take
from yt8m_assets.data import loading
from yt8m_assets.data.datasets import PretrainingDataset
from yt8m_assets.errors import VocabularyError, WorkerCrashError


def dataset(uris, **changes):
    options = {"num_classes": 10, "batch_size": 4, "window_frames": 5, "seed": 3, "feature_sizes": SIZES}
    return PretrainingDataset(uris, **(options | changes))


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("split"), [7, 1, 5])


@pytest.mark.parametrize(
    "num_workers", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_any_number_of_workers_gives_the_same_batches(uris, num_workers):
    inline = dataset(uris)
    expected = take(inline, 9)
    stream = dataset(uris, num_workers=num_workers)
    first = take(stream, 4)
    state = stream.state_dict()
    assert state["position"] == 16
    restored = dataset(uris, num_workers=num_workers)
    restored.load_state_dict(state)
    assert all(same_batch(*pair) for pair in zip(first + take(restored, 5), expected, strict=True))


def test_the_thread_gives_the_same_batches_and_raises_errors(uris, tmp_path, monkeypatch):
    monkeypatch.setattr("yt8m_assets.data.batches.Batch.pin_memory", lambda batch: batch)  # needs a GPU
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
