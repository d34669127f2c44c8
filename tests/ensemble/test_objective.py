"""The exact objective: against a full fusion, with and without a cut that binds."""

import numpy as np
import pytest

from tests.ensemble.problem import problem
from yt8m_assets.ensemble import fuse
from yt8m_assets.ensemble.objective import FusionObjective
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.evaluation import Ratings, mean_average_precision_at_k, ranking_map
from yt8m_assets.ranking.files import Ranking

NOISES = {"a": 0.3, "b": 0.8, "c": 2.0}


def random_weights(generator: np.random.Generator, keys) -> dict[str, float]:
    weights = generator.random(len(keys)) * (generator.random(len(keys)) < 0.8)
    weights[generator.integers(len(keys))] += 0.5
    return dict(zip(keys, weights.tolist(), strict=True))


def full(rankings, ratings, w0, weights, k) -> float:
    fused = fuse(list(rankings.values()), [weights[key] for key in rankings], w0, k)
    return ranking_map(fused, ratings, k).map


@pytest.mark.parametrize("k", [20, 60, 100, 150, 200, 280, 100_000])
@pytest.mark.parametrize("list_size", [None, 100])
def test_a_trial_is_exactly_the_map_of_the_full_fusion(k, list_size):
    """300 segments a class: up to k = 280 the cut takes rated segments away, in part positives."""
    rankings, ratings = problem(NOISES, share_rated=0.3, list_size=list_size)
    objective = FusionObjective(rankings, ratings, k)
    generator = np.random.default_rng(k)
    for _ in range(25):
        weights, w0 = random_weights(generator, NOISES), float(np.exp(generator.uniform(-2, 7)))
        assert objective(w0, weights) == pytest.approx(full(rankings, ratings, w0, weights, k), abs=1e-12)


def test_the_cut_binds_and_the_bounds_leave_few_classes_to_a_full_fusion():
    rankings, ratings = problem(NOISES, num_videos=200, num_classes=8, share_rated=0.05)
    uncut, cut = FusionObjective(rankings, ratings), FusionObjective(rankings, ratings, 1900)
    weights = dict.fromkeys(NOISES, 1.0)
    assert cut(20.0, weights) < uncut(20.0, weights)
    assert cut.num_exact < 8
    assert uncut.num_exact == 0


def test_ties_are_broken_as_the_fusion_breaks_them():
    lists = [{1: ["aaaa:0", "bbbb:0"]}, {1: ["bbbb:0", "aaaa:0"]}]
    rankings = {str(number): Ranking.from_dict(part) for number, part in enumerate(lists)}
    for positive in ("aaaa:0", "bbbb:0"):
        ratings = Ratings.from_dict({("aaaa:0", 1): int(positive[0] == "a"), ("bbbb:0", 1): int(positive[0] == "b")})
        objective = FusionObjective(rankings, ratings)
        assert objective(3.0, {"0": 1.0, "1": 1.0}) == (1.0 if positive == "aaaa:0" else 0.5)


def test_equal_weights_tie_often_and_stay_exact():
    rankings, ratings = problem({"a": 0.5, "b": 0.5}, share_rated=0.8)
    for k in (150, 100_000):
        objective = FusionObjective(rankings, ratings, k)
        for w0 in (0.5, 4.0, 1e6):
            weights = {"a": 1.0, "b": 1.0}
            assert objective(w0, weights) == pytest.approx(full(rankings, ratings, w0, weights, k), abs=1e-12)


def test_rankings_over_different_tables_are_looked_up_each_in_its_own():
    rankings, ratings = problem(NOISES, list_size=40, share_rated=0.3)
    assert not rankings["a"].segments.same_as(rankings["b"].segments)
    objective = FusionObjective(rankings, ratings, 60)
    weights = {"a": 1.0, "b": 0.3, "c": 0.1}
    assert objective(5.0, weights) == pytest.approx(full(rankings, ratings, 5.0, weights, 60), abs=1e-12)


def test_positives_in_no_list_count_as_missed():
    rankings = {"a": Ranking.from_dict({1: ["aaaa:0"]})}
    ratings = Ratings.from_dict({("aaaa:0", 1): 1, ("zzzz:0", 1): 1})
    assert FusionObjective(rankings, ratings)(1.0, {"a": 1.0}) == 0.5


def test_a_part_of_the_videos_is_scored_alone():
    rankings, ratings = problem(NOISES, share_rated=0.3)
    objective = FusionObjective(rankings, ratings)
    videos = objective.videos()[::3]
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    names = set(ratings.video_ids[videos].tolist())
    pairs = {pair: score for pair, score in ratings.to_dict().items() if pair[0].split(":")[0] in names}
    fused = fuse(list(rankings.values()), list(weights.values()), 5.0).to_dict()
    expected = mean_average_precision_at_k(fused, pairs).map
    assert objective(5.0, weights, objective.part(videos)) == pytest.approx(expected, abs=1e-12)


def test_what_cannot_be_scored_is_named():
    rankings, ratings = problem(NOISES)
    with pytest.raises(DataError, match="no class with a positive"):
        FusionObjective(rankings, Ratings.from_dict({("v000:0", 0): 0}))
    with pytest.raises(DataError, match="no class with a positive"):
        FusionObjective(rankings, Ratings.from_dict({("v000:0", 77): 1}))
    with pytest.raises(ConfigError, match="w0 = 0"):
        FusionObjective(rankings, ratings)(0.0, dict.fromkeys(NOISES, 1.0))
