"""A video's own evidence in its segments' scores: by hand, in the pass and after it alike."""

import numpy as np
import pytest

from tests.ranking.test_demotion import BEGINS, CLASSES, SIZES, rank, scores, table
from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.ranking.demotion import demote, edge_mask
from yt8m_assets.ranking.video_term import ComposedRanking, compose


def test_by_hand() -> None:
    values = np.array([[0.9, 0.0], [0.1, 0.4], [0.5, 0.2]], np.float32)
    found = compose(values, np.array([0, 2]), 0.5)
    np.testing.assert_allclose(found[:, 0], [np.sqrt(0.5 * 0.9), np.sqrt(0.5 * 0.1), 0.5], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1], [0.0, np.sqrt(0.2 * 0.4), 0.2], rtol=1e-6)
    assert found.dtype == np.float32


def test_of_two_equal_segments_that_of_the_likelier_video_comes_first() -> None:
    values = np.array([[0.5], [0.9], [0.5], [0.1]], np.float32)
    found = compose(values, np.array([0, 2]), 0.2)
    assert found[0] > found[2]
    assert found[1] > found[0]  # within a video the order stays


def test_without_weight_the_scores_are_the_very_same() -> None:
    values = scores()
    assert compose(values, BEGINS, 0.0) is values


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan")])
def test_a_weight_out_of_bounds_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"video_weight = .*: must lie in"):
        compose(scores(), BEGINS, weight)


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.9])
def test_in_the_pass_and_after_it_the_same(weight: float) -> None:
    values = scores(4)
    in_pass = rank(compose(values, BEGINS, weight))
    after = ComposedRanking(rank(values), weight)
    for class_id in CLASSES.tolist():
        for mine, other in zip(after.entries(class_id), in_pass.entries(class_id), strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-7)


def test_a_demoted_ranking_has_no_plain_scores() -> None:
    ranking = rank(demote(scores(), edge_mask(table(), 1, 0), BEGINS, None))
    with pytest.raises(DataError, match="made with demotions"):
        ComposedRanking(ranking, 0.2)
    assert SIZES.sum() == len(scores())
