"""Average precision against the original's figures (tests/golden/metrics) and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.original_metrics import original_ap_at_n, original_streaming_ap
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import average_precision, mean_average_precision
from yt8m_assets.evaluation.average_precision import grouped_average_precision

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
CASES = json.loads((GOLDEN / "metrics_core.json").read_text())
AP_CASES = [name for name in CASES if name.startswith("ap/")]
TIED = {"ap/ties", "ap/ties_top10", "ap/constant_predictions"}


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "metrics_core.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", [name for name in AP_CASES if name not in TIED])
def test_it_is_the_original_s_where_no_scores_tie(arrays, name):
    case = CASES[name]
    found = average_precision(
        arrays[f"{name}/pred"], arrays[f"{name}/act"], case["top_n"], num_positives=case["num_positives_total"]
    )
    assert found == pytest.approx(case["static_ap_at_n"], abs=1e-12)
    assert found == pytest.approx(case["streaming_ap"], abs=1e-12)


@pytest.mark.parametrize("name", AP_CASES)
def test_the_original_s_rule_for_ties_gives_its_figure_and_only_there_is_ours_another(arrays, name):
    case, scores, labels = CASES[name], arrays[f"{name}/pred"], arrays[f"{name}/act"]
    static = original_ap_at_n(scores.tolist(), labels.tolist(), case["top_n"], case["static_total"])
    streaming = original_streaming_ap(scores, labels, case["top_n"], case["chunks"], case["num_positives_total"])
    assert static == pytest.approx(case["static_ap_at_n"], abs=1e-12)
    assert streaming == pytest.approx(case["streaming_ap"], abs=1e-12)
    ours = average_precision(scores, labels, case["top_n"], num_positives=case["num_positives_total"])
    assert (ours == pytest.approx(static, abs=1e-12)) == (name not in TIED)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("map/")])
def test_the_mean_over_classes_is_the_original_s(arrays, name):
    case = CASES[name]
    totals = case["num_positives"] or [None] * case["num_class"]
    found = {}
    for number in range(case["num_class"]):
        scores, labels = arrays[f"{name}/pred_{number}"], arrays[f"{name}/act_{number}"]
        found[number] = average_precision(scores, labels, case["kw"].get("top_n"), num_positives=totals[number])
        if not case["kw"].get("filter_empty_classes", True) or (totals[number] or np.any(labels > 0)):
            continue
        del found[number]
    assert list(found.values()) == pytest.approx(arrays[f"{name}/aps"].tolist(), abs=1e-12)
    assert np.mean(list(found.values())) == pytest.approx(case["map"], abs=1e-12)


@pytest.mark.parametrize("name", ["eval/allk_1000"])
def test_dense_scores_with_unrated_classes_masked_give_the_original_s_map(arrays, name):
    scores = np.concatenate([arrays[f"{name}/pred_{n}"] * arrays[f"{name}/label_weights_{n}"] for n in range(3)])
    labels = np.concatenate([arrays[f"{name}/labels_{n}"] for n in range(3)])
    found = mean_average_precision(scores, labels)
    # Masked scores are all 0 and tie behind the rest: only positives among them could differ, and there are none.
    assert not np.any(labels[scores == 0])
    assert found.map == pytest.approx(CASES[name]["map"], abs=1e-7)
    assert list(found.per_class.values()) == pytest.approx(arrays[f"{name}/aps"].tolist(), abs=1e-7)


def test_by_hand():
    scores, labels = np.array([0.1, 0.9, 0.5, 0.7]), np.array([1, 1, 0, 0])
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision(scores, labels, top_n=1) == 1.0
    assert average_precision(scores, labels, num_positives=5) == pytest.approx((1 + 2 / 4) / 5)


def test_ties_keep_the_order_of_the_input():
    assert average_precision(np.zeros(3), np.array([1, 0, 0])) == 1.0
    assert average_precision(np.zeros(3), np.array([0, 0, 1])) == pytest.approx(1 / 3)


def test_a_class_without_positives_is_named_and_left_out():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
    labels = np.array([[1, 0, 0], [0, 0, 1]])
    found = mean_average_precision(scores, labels)
    assert found.per_class == {0: 1.0, 2: 0.5}
    assert found.without_positives == (1,)
    assert found.map == 0.75


def test_no_positive_at_all_is_no_number():
    found = mean_average_precision(np.ones((2, 2)), np.zeros((2, 2)))
    assert np.isnan(found.map)
    assert found.per_class == {}


def test_many_lists_at_once_equal_one_by_one():
    generator = np.random.default_rng(0)
    group = np.sort(generator.integers(0, 30, 500))
    positive = generator.random(500) < 0.4
    totals = np.bincount(group, weights=positive, minlength=31).astype(int) + generator.integers(0, 2, 31)
    found = grouped_average_precision(group, positive, totals)
    for number in range(31):
        labels = positive[group == number]
        alone = average_precision(-np.arange(labels.size), labels, num_positives=totals[number])
        assert found[number] == pytest.approx(alone, abs=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"\(2,\).*\(3,\)"):
        average_precision(np.zeros(2), np.zeros(3))
    with pytest.raises(DataError, match="mean average precision"):
        mean_average_precision(np.zeros((2, 2)), np.zeros((2, 3)))
