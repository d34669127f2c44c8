"""Small versions of the bars of `make bench-scale`: the same measurements, in seconds."""

import pickle
import tracemalloc
from pathlib import Path

from tests.benchmarks import scale_index, scale_pass
from tests.benchmarks.bench_scale import ROWS
from yt8m_assets.data.dataset.videos import IndexedVideos


def test_an_empty_machine_reads_the_index_and_the_first_window(tmp_path: Path) -> None:
    assert ROWS["first_step"].met(scale_index.first_step(tmp_path, latency_ms=0, num_frames=100))


def test_a_shard_costs_few_requests_besides_its_reads(tmp_path: Path) -> None:
    assert ROWS["requests"].met(scale_index.requests(tmp_path, 4, 8))


def test_of_a_list_that_is_made_again_the_replaced_shard_alone_is_read(tmp_path: Path) -> None:
    assert ROWS["replaced_shard"].met(scale_index.replaced_shard(tmp_path, 8))


def test_a_pass_over_some_models_reads_no_more_than_one_of_them(tmp_path: Path) -> None:
    assert ROWS["pass_bytes"].met(scale_pass.bytes_read(tmp_path, num_steps=2, count=3))


def test_a_published_list_of_many_shards_is_checked_in_no_time(tmp_path: Path) -> None:
    assert ROWS["listing"].met(scale_index.listing(tmp_path, num_shards=50))


def test_a_plan_over_a_bucket_asks_little(tmp_path: Path) -> None:
    assert scale_index.status_requests(tmp_path) <= 60


def test_a_reader_process_holds_a_few_bytes_a_video(tmp_path: Path) -> None:
    """Of 5.6 million videos 45 MB, where ids and columns in memory took 0.7 GB."""
    videos = IndexedVideos(scale_index.synthetic_index(tmp_path, 400))
    text = pickle.dumps(videos)
    assert len(text) < 2 * len(videos)
    tracemalloc.start()
    try:
        there = pickle.loads(text)
        assert there.video_ids[-1] == "03991456"
        assert there.num_frames[1] == 101
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(videos) + 10**6
