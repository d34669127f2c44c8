"""GAP, Hit@1 and PERR against the original's figures and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import global_average_precision, hit_at_one, precision_at_equal_recall_rate
from yt8m_assets.evaluation.video_labels import VideoMetrics, best_classes

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
CASES = {name: case for name, case in json.loads((GOLDEN / "metrics_core.json").read_text()).items() if "eval/" in name}
TIED = {"eval/ties"}


def batches(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(GOLDEN / "metrics_core.npz") as file:
        rows = []
        for number in range(3):
            scores, labels = file[f"{name}/pred_{number}"], file[f"{name}/labels_{number}"]
            if f"{name}/label_weights_{number}" in file:
                scores = scores * file[f"{name}/label_weights_{number}"]
            rows.append((scores, labels))
    return rows


@pytest.mark.parametrize("name", [name for name in CASES if name not in TIED])
def test_every_batch_and_the_epoch_are_the_original_s(name):
    case, rows = CASES[name], batches(name)
    for (scores, labels), expected in zip(rows, case["batches"], strict=True):
        assert hit_at_one(scores, labels) == pytest.approx(expected["hit_at_one"], abs=1e-6)
        assert precision_at_equal_recall_rate(scores, labels) == pytest.approx(expected["perr"], abs=1e-6)
        assert global_average_precision(scores, labels, case["top_k"]) == pytest.approx(expected["batch_gap"], abs=1e-6)
    scores, labels = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    assert global_average_precision(scores, labels, case["top_k"]) == pytest.approx(case["epoch"]["gap"], abs=1e-6)
    assert hit_at_one(scores, labels) == pytest.approx(case["epoch"]["avg_hit_at_one"], abs=1e-6)
    assert precision_at_equal_recall_rate(scores, labels) == pytest.approx(case["epoch"]["avg_perr"], abs=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name not in TIED and CASES[name]["top_n"] is None])
def test_a_stream_of_batches_has_the_original_s_epoch_values(name):
    case, metrics = CASES[name], VideoMetrics(CASES[name]["top_k"])
    for scores, labels in batches(name):
        metrics.add(scores, labels)
    epoch = case["epoch"]
    found = (metrics.gap, metrics.hit_at_one, metrics.perr, metrics.map)
    expected = (epoch["gap"], epoch["avg_hit_at_one"], epoch["avg_perr"], case["map"])
    assert found == pytest.approx(expected, abs=1e-6)


def test_however_it_is_cut_into_batches_a_stream_has_the_same_values():
    rng = np.random.default_rng(2)
    scores = rng.random((50, 40)).astype(np.float32).round(1)  # with many ties
    labels = rng.random((50, 40)) < 0.1
    found = []
    for size in (1, 7, 50):
        metrics = VideoMetrics(top_k=5)
        for first in range(0, 50, size):
            metrics.add(scores[first : first + size], labels[first : first + size])
        found.append((metrics.gap, metrics.hit_at_one, metrics.perr, metrics.map, metrics.num_examples))
    assert found[1] == pytest.approx(found[0], abs=1e-12)
    assert found[2] == pytest.approx(found[0], abs=1e-12)


@pytest.mark.parametrize("count", [1, 3, 12, 20])
def test_the_best_classes_are_those_of_a_stable_sort(count):
    scores = np.random.default_rng(3).random((30, 12)).astype(np.float32).round(1)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    assert best_classes(scores, count).tolist() == expected.tolist()


def test_a_stream_keeps_a_few_bytes_an_example():
    """Of 3862 classes 20 are kept: 180 bytes an example of the 15,448 that came."""
    rng = np.random.default_rng(4)
    metrics = VideoMetrics()
    for _ in range(4):
        metrics.add(rng.random((64, 3862), dtype=np.float32), rng.random((64, 3862)) < 0.001)
    parts = [part for name in ("_scores", "_classes", "_hits") for part in getattr(metrics, name)]
    held = sum((part if part.base is None else part.base).nbytes for part in parts)
    assert held == 4 * 64 * 20 * 9


def test_without_labels_every_metric_is_zero():
    metrics = VideoMetrics()
    metrics.add(np.full((2, 30), 0.5), np.zeros((2, 30)))
    assert (metrics.gap, metrics.hit_at_one, metrics.perr, metrics.map) == (0, 0, 0, 0)


def test_where_scores_tie_only_the_choice_among_equals_differs():
    """The original takes tied classes in argpartition's order; breaking the ties beforehand does not change ours."""
    for (scores, labels), expected in zip(batches("eval/ties"), CASES["eval/ties"]["batches"], strict=True):
        untied = scores - np.arange(scores.shape[1]) * 1e-9 - np.arange(len(scores))[:, None] * 1e-7
        assert hit_at_one(scores, labels) == pytest.approx(expected["hit_at_one"], abs=1e-6)
        ours = precision_at_equal_recall_rate(scores, labels)
        assert ours == precision_at_equal_recall_rate(untied.astype(np.float64), labels)
        assert ours != pytest.approx(expected["perr"], abs=1e-6)
        assert ours == pytest.approx(expected["perr"], abs=0.02)
        assert global_average_precision(scores, labels) == pytest.approx(expected["batch_gap"], abs=0.01)


def test_gap_counts_positives_that_no_top_k_holds():
    scores, labels = np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]])
    assert global_average_precision(scores, labels, top_k=1) == 0.5
    assert global_average_precision(scores, labels, top_k=3) == pytest.approx((1 + 2 / 3) / 2)


def test_perr_gives_nothing_for_a_score_of_zero_or_an_example_without_labels():
    assert precision_at_equal_recall_rate(np.array([[0.0, 0.0]]), np.array([[1, 0]])) == 0.0
    assert precision_at_equal_recall_rate(np.array([[0.5, 0.2], [0.5, 0.2]]), np.array([[1, 0], [0, 0]])) == 0.5


def test_shapes_that_do_not_fit_are_refused():
    for metric in (global_average_precision, hit_at_one, precision_at_equal_recall_rate):
        with pytest.raises(DataError, match=r"need \[B, C\]"):
            metric(np.zeros((2, 3)), np.zeros((3, 2)))
        with pytest.raises(DataError, match=r"need \[B, C\]"):
            metric(np.zeros((0, 3)), np.zeros((0, 3)))
