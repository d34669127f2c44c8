"""MAP@K: the original's figures, the dict form and the array form."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.original_metrics import original_segment_map
from yt8m_assets.errors import ConfigError
from yt8m_assets.evaluation import Ratings, mean_average_precision_at_k, ranking_map, rated_places
from yt8m_assets.ranking.files import Ranking

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics"
FIGURES = json.loads((GOLDEN / "metrics_segment.json").read_text())
LINES = (GOLDEN / "metrics_segment_submission.csv").read_text().splitlines(keepends=True)
RANKINGS = {int(line.split(",")[0]): line.strip().split(",")[1].split(" ") for line in LINES}
RATINGS = Ratings.read_csv(GOLDEN / "metrics_segment_labels.csv")


@pytest.mark.parametrize("k", [0, 100, 1000, 100_000])
def test_the_original_s_rule_gives_its_figure(k):
    found, per_class = original_segment_map(LINES, RATINGS.to_dict(), k)
    assert found == pytest.approx(FIGURES[str(k)]["map"], abs=1e-12)
    assert list(per_class.values()) == pytest.approx(FIGURES[str(k)]["aps_of_classes_with_positives"], abs=1e-12)


@pytest.mark.parametrize("k", [100, 1000])
def test_ours_is_the_original_s_where_its_cut_takes_the_last_id_away(k):
    found = mean_average_precision_at_k(RANKINGS, RATINGS.to_dict(), k)
    assert found.map == pytest.approx(FIGURES[str(k)]["map"], abs=1e-12)


def test_ours_counts_the_last_id_and_differs_by_just_that():
    found = mean_average_precision_at_k(RANKINGS, RATINGS.to_dict())
    assert found.map == pytest.approx(0.36334, abs=5e-6)
    assert FIGURES["100000"]["map"] == pytest.approx(0.35489, abs=5e-6)
    repaired, per_class = original_segment_map([line.rstrip("\n") for line in LINES], RATINGS.to_dict(), 100_000)
    assert found.map == pytest.approx(repaired, abs=1e-12)
    assert found.per_class == pytest.approx(per_class)


def test_classes_without_positives_and_classes_not_ranked_are_named():
    found = mean_average_precision_at_k(RANKINGS, RATINGS.to_dict())
    assert sorted(found.per_class) == [3, 7, 8, 11]
    assert [found.num_positives[class_id] for class_id in (3, 7, 8, 11)] == [25, 31, 28, 22]
    assert found.without_positives == (20, 21)
    assert found.missing == (99,)


@pytest.mark.parametrize("k", [1, 50, 100, 1000, 100_000])
def test_arrays_and_dicts_agree(k):
    plain = mean_average_precision_at_k(RANKINGS, RATINGS.to_dict(), k)
    fast = ranking_map(Ranking.from_dict(RANKINGS), RATINGS, k)
    assert fast.per_class == pytest.approx(plain.per_class, abs=1e-12)
    assert fast.map == pytest.approx(plain.map, abs=1e-12)
    assert (fast.num_positives, fast.without_positives, fast.missing) == (
        plain.num_positives,
        plain.without_positives,
        plain.missing,
    )


def test_arrays_and_dicts_agree_on_random_rankings():
    generator = np.random.default_rng(0)
    names = [f"v{number:03d}:{start}" for number in range(40) for start in range(0, 50, 5)]
    for _ in range(5):
        rankings = {c: generator.permutation(names)[: generator.integers(1, 400)].tolist() for c in range(12)}
        pairs = {(str(n), int(c)): int(generator.random() < 0.3) for n in names for c in generator.integers(0, 14, 2)}
        plain = mean_average_precision_at_k(rankings, pairs, 200)
        fast = ranking_map(Ranking.from_dict(rankings), Ratings.from_dict(pairs), 200)
        assert fast.per_class == pytest.approx(plain.per_class, abs=1e-12)
        assert (fast.without_positives, fast.missing) == (plain.without_positives, plain.missing)


def test_a_segment_listed_twice_counts_where_it_stands_first():
    ratings = {("aaaa:0", 1): 1, ("aaaa:5", 1): 0, ("aaaa:10", 1): 1}
    found = mean_average_precision_at_k({1: ["aaaa:0", "aaaa:0", "aaaa:5", "aaaa:10"]}, ratings)
    assert found.map == pytest.approx((1 + 2 / 3) / 2)


def test_places_are_those_of_the_class_s_own_list():
    ranking = Ranking.from_dict({1: ["aaaa:5", "aaaa:0"], 2: ["aaaa:0"]})
    ratings = Ratings.from_dict(
        {("aaaa:0", 1): 1, ("aaaa:5", 1): 0, ("aaaa:0", 2): 1, ("bbbb:0", 2): 0, ("aaaa:5", 2): 1}
    )
    assert rated_places(ranking, ratings).tolist() == [1, 0, 0, -1, -1]
    assert rated_places(ranking, ratings, 1).tolist() == [-1, 0, 0, -1, -1]


def test_a_cut_below_one_is_refused():
    with pytest.raises(ConfigError, match="k = 0"):
        mean_average_precision_at_k({}, {}, 0)


def test_at_most_100_000_count_so_a_shorter_list_is_scored_at_100_000_as_at_its_own_length():
    names = [f"vid{number:04d}:0" for number in range(40)]
    ratings = {(name, 1): number % 3 == 0 for number, name in enumerate(names)}
    whole = {1: names[::-1]}
    for k in (1, 7, 40):
        cut = {1: whole[1][:k]}
        expected = mean_average_precision_at_k(whole, ratings, k)
        assert mean_average_precision_at_k(cut, ratings).map == expected.map
        assert ranking_map(Ranking.from_dict(cut), Ratings.from_dict(ratings)).map == pytest.approx(expected.map)
