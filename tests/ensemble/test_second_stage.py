import numpy as np
import pytest

from tests.ensemble.problem import world
from yt8m_assets.ensemble.second_stage import (
    NUM_FOLDS,
    SecondStage,
    StagedRanking,
    cross_fitted,
    fit_second_stage,
    fold_of,
)
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import Ratings, ranking_map
from yt8m_assets.ranking.files import Ranking

NOISES = (0.8, 1.0)


@pytest.fixture(scope="module")
def held_out():
    return world(3, 1, 60, NOISES)


def test_the_figures_by_hand():
    """Two videos of two and three segments; the second list lacks two of them, which stand last in it."""
    first = Ranking.from_dict({4: ["b:0", "a:5", "b:5", "a:0", "b:10"]})
    second = Ranking.from_dict({4: ["a:5", "b:0", "b:5"]})
    odds = np.log((np.arange(5, 0, -1) - 0.5) / (np.arange(5) + 0.5))
    x = np.array([odds[3] + odds[4], odds[1] + odds[0], odds[0] + odds[1], 2 * odds[2], 2 * odds[4]]) / 2
    weights = np.eye(5)
    expected = [
        x,
        np.repeat([x[:2].mean(), x[2:].mean()], [2, 3]),
        np.repeat([x[:2].max(), x[2:].max()], [2, 3]),
        np.array([x[0] + x[1], x[0] + x[1], x[2] + x[3], x[2] + x[4], x[3] + x[4]]) / 2,
        np.ones(5),
    ]
    for one, figure in zip(weights, expected, strict=True):
        stage = SecondStage(weights=tuple(one.tolist()), fitted_on=frozenset())
        segment, score = StagedRanking([first, second], [stage]).entries(4)
        assert np.allclose(score, figure[segment], atol=1e-6)
        assert (np.diff(score) <= 0).all()


def test_a_planted_leak_is_refused(held_out):
    rankings, ratings = held_out
    lists = list(rankings.values())
    leaking = fit_second_stage(lists, ratings)
    with pytest.raises(DataError, match="60 videos would be scored by what was fitted on their own ratings"):
        StagedRanking(lists, [leaking])
    ranking, stages = cross_fitted(lists, ratings, seed=0)
    folds = fold_of(ranking.segments, 0)
    swapped = (folds + 1) % NUM_FOLDS
    with pytest.raises(DataError, match="fitted on their own ratings"):
        StagedRanking(lists, stages, swapped)
    others, _ = world(3, 2, 20, NOISES)
    other = Ranking.from_dict({c: [f"new{name}" for name in ids] for c, ids in others["model0"].to_dict().items()})
    StagedRanking([other], [leaking])  # videos that it has not seen


def test_every_video_is_scored_by_the_other_folds(held_out):
    rankings, ratings = held_out
    ranking, stages = cross_fitted(list(rankings.values()), ratings, seed=0)
    folds = fold_of(ranking.segments, 0)
    names = ranking.segments.video_ids
    assert np.bincount(folds).tolist() == [12] * NUM_FOLDS
    for fold, stage in enumerate(stages):
        assert not stage.fitted_on & set(names[folds == fold])
        assert stage.fitted_on
    assert not np.array_equal(folds, fold_of(ranking.segments, 1))


def test_a_fold_s_own_ratings_change_nothing_of_its_scores(held_out):
    """What a leak would look like: turn a video's ratings round, and its own scores move."""
    rankings, ratings = held_out
    lists = list(rankings.values())
    plain, _ = cross_fitted(lists, ratings, seed=0)
    folds = fold_of(plain.segments, 0)
    names = set(plain.segments.video_ids[folds == 2].tolist())
    turned = {
        (name, class_id): 1 - score if name.split(":")[0] in names else score
        for (name, class_id), score in ratings.to_dict().items()
    }
    other, _ = cross_fitted(lists, Ratings.from_dict(turned), seed=0)
    moved = np.zeros(len(plain.segments), bool)
    for class_id in plain.class_ids.tolist():
        scores = np.empty((2, len(plain.segments)), np.float32)
        for row, each in enumerate((plain, other)):
            segment, score = each.entries(class_id)
            scores[row, segment] = score
        moved |= scores[0] != scores[1]
    mine = folds[plain.segments.video] == 2
    assert not moved[mine].any()
    assert moved[~mine].all()


@pytest.mark.parametrize("each", [True, False])
def test_the_ratings_say_which_way_the_video_counts(each):
    """Rated against its own video's level a segment is to stand out; rated as it is, the video's level helps."""
    rng = np.random.default_rng(0)
    video, own = rng.normal(size=80).repeat(10), rng.normal(size=800)
    names = np.array([f"v{i // 10:03d}:{i % 10 * 5}" for i in range(800)])
    seen = video + own + 0.7 * rng.normal(size=800)
    ranking = Ranking.from_dict({1: names[np.argsort(-seen)].tolist()})
    truth = own if each else 2 * video + 0.3 * own
    ratings = Ratings.from_dict({(str(name), 1): int(value > 0) for name, value in zip(names, truth, strict=True)})
    staged, stages = cross_fitted([ranking], ratings, seed=0)
    assert all((stage.weights[1] < 0) == each for stage in stages)
    assert ranking_map(staged, ratings).map > ranking_map(ranking, ratings).map + 0.02


def test_it_returns_from_json_and_needs_ratings_of_both_kinds(held_out):
    rankings, ratings = held_out
    stage = fit_second_stage(list(rankings.values()), ratings)
    assert SecondStage.from_json(stage.to_json()) == stage
    positive = Ratings.from_dict(dict.fromkeys(ratings.to_dict(), 1))
    with pytest.raises(DataError, match="both are needed"):
        fit_second_stage(list(rankings.values()), positive)
