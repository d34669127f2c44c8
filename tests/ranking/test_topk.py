"""The streaming top-k: against a plain sort, with ties, and against what the original's inference wrote."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.data.factory import normalise
from tests.ranking.streaming import streamed, table_of
from yt8m_assets.data import read_shard, segment_windows
from yt8m_assets.errors import ConfigError, DataError, NonFiniteError
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.topk import StreamingTopK, max_bytes

RECORDS = Path(__file__).parents[1] / "golden" / "records"
CLASSES = np.array([7, 3, 20])


def stream(scores: dict[str, np.ndarray], k: int, class_ids: np.ndarray = CLASSES) -> dict[int, list[str]]:
    """Feed {video: [segments, classes]} one video at a time, segments 5 seconds apart."""
    return streamed(scores, k, class_ids).finish().to_dict()


def plain(scores: dict[str, np.ndarray], k: int, class_ids: np.ndarray = CLASSES) -> dict[int, list[str]]:
    """The same by a sort of everything: score descending, then (video id, start)."""
    lists = {}
    for column, class_id in enumerate(class_ids.tolist()):
        rows = [(-block[n, column], name, n * 5) for name, block in scores.items() for n in range(len(block))]
        lists[class_id] = [f"{name}:{start}" for _, name, start in sorted(rows)[:k]]
    return lists


def random_scores(num_videos: int, digits: int | None, seed: int = 0, size: int = 40) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    names = [f"v{number:04d}" for number in generator.permutation(num_videos)]
    blocks = [generator.normal(size=(generator.integers(1, size), CLASSES.size)).astype(np.float32) for _ in names]
    return {name: block if digits is None else block.round(digits) for name, block in zip(names, blocks, strict=True)}


@pytest.mark.parametrize("k", [1, 7, 400, 100_000])
@pytest.mark.parametrize("digits", [None, 1, 0])
def test_it_equals_a_sort_of_everything(k, digits):
    scores = random_scores(50, digits)
    assert stream(scores, k) == plain(scores, k)


def test_it_equals_a_sort_when_the_buffers_are_cut_many_times():
    generator = np.random.default_rng(5)
    scores = {f"v{n:02d}": generator.normal(size=(3000, 3)).astype(np.float32).round(2) for n in range(20)}
    assert stream(scores, 500) == plain(scores, 500)


def test_scores_that_rise_all_the_time_are_kept():
    scores = {f"v{n:02d}": (np.arange(3000)[:, None] + 3000 * n + np.zeros(3)).astype(np.float32) for n in range(12)}
    assert stream(scores, 50) == plain(scores, 50)


def test_constant_scores_keep_the_smallest_ids_in_any_order_of_arrival():
    scores = {f"v{n:02d}": np.zeros((3000, 3), np.float32) for n in (7, 3, 9, 1, 0, 8, 2, 4)}
    scores["v05"] = np.full((10, 3), -0.0, np.float32)  # the same score as 0.0
    assert stream(scores, 100)[7] == [f"v00:{start}" for start in range(0, 500, 5)]


def test_the_ranking_lists_classes_ascending_with_descending_float32_scores():
    ranking = streamed(random_scores(10, None), 30, CLASSES).finish()
    assert ranking.class_ids.tolist() == [3, 7, 20]
    assert ranking.score.dtype == np.float32
    for _, _, score in ranking:
        assert score.size == 30
        assert np.all(np.diff(score) <= 0)


def test_consecutive_rows_need_only_the_first_number():
    segments = Segments(video_ids=np.array(["aaaa"]), video=np.zeros(4, int), start=np.arange(4) * 5)
    best = StreamingTopK(np.array([1]), 2, segments)
    best.update(np.array([[0.1], [0.9]]), 0)
    best.update(np.array([[0.5], [0.9]]), 2)
    assert best.finish().to_dict() == {1: ["aaaa:5", "aaaa:15"]}


def test_a_class_of_no_segments_is_there_and_empty():
    assert stream({}, 5) == {3: [], 7: [], 20: []}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_class_and_segment(value):
    scores = {"aaaa": np.zeros((3, 3), np.float32)}
    scores["aaaa"][1, 2] = value
    with pytest.raises(NonFiniteError, match="class 20 for segment aaaa:5"):
        stream(scores, 5)


def test_opposite_infinities_are_refused_too():
    with pytest.raises(NonFiniteError, match="class 7 for segment aaaa:0"):
        stream({"aaaa": np.array([[np.inf, -np.inf, 0.0]], np.float32)}, 5)


def test_misuse_is_named():
    table, (rows,) = table_of({"aaaa": [0]})
    with pytest.raises(ConfigError, match="top_k = 0"):
        StreamingTopK(CLASSES, 0, table)
    with pytest.raises(ConfigError, match="more than once"):
        StreamingTopK(np.array([1, 1]), 5, table)
    best = StreamingTopK(CLASSES, 5, table)
    with pytest.raises(DataError, match=r"expected \[segments, 3\]"):
        best.update(np.zeros((1, 2)), rows)
    with pytest.raises(DataError, match="outside the table"):
        best.update(np.zeros((1, 3)), rows + 1)
    with pytest.raises(DataError, match="rows for 2"):
        best.update(np.zeros((2, 3)), rows)


def test_memory_is_bounded_by_classes_times_k():
    generator = np.random.default_rng(0)
    scores = {f"v{number:03d}": generator.random((1000, 20), np.float32) for number in range(60)}
    best = streamed(scores, 100, np.arange(20))
    buffers = sum(value.nbytes for value in vars(best).values() if isinstance(value, np.ndarray))
    assert buffers < 20 * (100 + 8192) * 8 + 21 * 8192 * 4 + 10_000


def toy_scores(windows: np.ndarray, num_frames: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The toy model of the records: sigmoid of the summed, normalised frames over their number, times W."""
    pooled = normalise(windows).sum(axis=1) / num_frames[:, None].astype(np.float32)
    return 1 / (1 + np.exp(-(pooled @ weights)))


@pytest.mark.parametrize(
    ("name", "shift", "top_classes", "k"),
    [(f"shift{shift}", shift, None, 100_000) for shift in (-2, -1, 0, 1, 2)]
    + [("shift0_top10_max7", 0, 10, 7), ("shift1_top10_max7", 1, 10, 7)],
)
def test_the_original_inference_ranks_the_same_ids(name, shift, top_classes, k):
    """Equal up to the original's `%g`: it rounds scores to 6 digits before it ranks (SPEC section 10)."""
    weights = np.load(RECORDS / "toy_W.npz")["W"]
    classes = np.array([int(line) for line in (RECORDS / "toy_segment_label_ids.csv").read_text().split()[1:]])
    blocks, score_of = {}, {}
    for video in read_shard(str(RECORDS / "frame_test.tfrecord")):
        windows, starts, num_frames = segment_windows(video.frames, shift, "wrap")
        scores = toy_scores(windows, num_frames, weights)[:, classes].astype(np.float32)
        if top_classes is not None:  # the original prints each segment's best classes only
            cut = np.sort(scores, axis=1)[:, -top_classes]
            scores = np.where(scores >= cut[:, None], scores, 0)
        blocks[video.video_id] = scores
        assert starts.tolist() == list(range(0, 5 * len(scores), 5))
        for row, start in enumerate(starts.tolist()):
            score_of[f"{video.video_id}:{start}"] = dict(zip(classes.tolist(), scores[row].tolist(), strict=True))
    mine = streamed(blocks, k, classes).finish().to_dict()

    theirs = {}
    for line in (RECORDS / f"out_inference_{name}.csv").read_text().splitlines():
        class_id, ids = re.fullmatch(r"(\d+),(.*)", line).groups()
        theirs[int(class_id)] = ids.split(" ")
    assert sorted(theirs) == sorted(c for c, ids in mine.items() if any(score_of[name][c] > 0 for name in ids))
    for class_id, ids in theirs.items():
        kept = [name for name in mine[class_id] if score_of[name][class_id] > 0]
        rounded = [[float(f"{score_of[name][class_id]:.5g}") for name in names] for names in (kept, ids)]
        assert rounded[0] == rounded[1]
        assert set(kept) == set(ids)


def test_the_memory_it_names_is_what_full_buffers_take():
    ids = np.array([f"v{number:05d}" for number in range(20_000)])
    segments = Segments(video_ids=ids, video=np.arange(ids.size), start=np.zeros(ids.size, np.int32))
    tracemalloc.start()
    best = StreamingTopK(np.arange(10), 30_000, segments)
    assert max_bytes(10, best.k, 20_000) == 10 * (20_000 * 8 + 8192 * 4)  # the buffers are longer, but never filled
    cut = StreamingTopK(np.arange(10), 5000, segments)
    before, _ = tracemalloc.get_traced_memory()
    del cut
    assert before - tracemalloc.get_traced_memory()[0] == pytest.approx(10 * ((5000 + 8192) * 8 + 8192 * 4), rel=0.1)
    tracemalloc.stop()


def test_finishing_takes_no_second_copy_of_the_lists():
    """At full size the lists of one cell are 0.8 GB: they are sorted and closed up where they lie."""
    classes, k, size = 60, 10_000, 40_000
    video = np.zeros(size, np.int32)
    segments = Segments(video_ids=np.array(["long"]), video=video, start=np.arange(size) * 5)
    best = StreamingTopK(np.arange(classes)[::-1], k, segments)
    for begin in range(0, size, 4000):
        scores = np.random.default_rng(begin).random((4000, classes), np.float32)
        best.update(scores, begin)
    lists = classes * k * 8
    tracemalloc.start()
    ranking = best.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ranking.segment.nbytes + ranking.score.nbytes == lists
    assert peak < lists * 1.4  # the shrunken buffers count as new; with a second copy it would be twice that
    values = np.concatenate(
        [np.random.default_rng(n).random((4000, classes), np.float32) for n in range(0, size, 4000)]
    )
    for class_id in (0, 7, classes - 1):
        expected = np.sort(values[:, classes - 1 - class_id])[::-1][:k]
        np.testing.assert_array_equal(ranking.entries(class_id)[1], expected)
