"""Reducing a ranking to its rated segments changes no figure."""

import numpy as np
import pytest

from tests.ensemble.problem import problem
from yt8m_assets.evaluation import bootstrap_map, paired_test, ranking_map
from yt8m_assets.reports.ablation_rankings import rated_only


@pytest.mark.parametrize("k", [100_000, 60, 7])
def test_figures_of_the_rated_segments_are_those_of_the_whole(k: int) -> None:
    rankings, ratings = problem({"a": 0.4, "b": 0.9}, list_size=200)
    small = {key: rated_only(ranking, ratings, k) for key, ranking in rankings.items()}
    for key, ranking in rankings.items():
        assert small[key].segment.size < ranking.segment.size
        assert ranking_map(small[key], ratings, k) == ranking_map(ranking, ratings, k)
        assert bootstrap_map(small[key], ratings, 30, k=k) == bootstrap_map(ranking, ratings, 30, k=k)
    assert paired_test(small["a"], small["b"], ratings, 30, k=k) == paired_test(
        rankings["a"], rankings["b"], ratings, 30, k=k
    )


def test_classes_without_ratings_stay_as_empty_lists() -> None:
    rankings, ratings = problem({"a": 0.4})
    few = ratings.select(ratings.class_id == 3)
    small = rated_only(rankings["a"], few, 100)
    np.testing.assert_array_equal(small.class_ids, rankings["a"].class_ids)
    assert {class_id: segment.size > 0 for class_id, segment, _ in small} == {c: c == 3 for c in range(5)}
