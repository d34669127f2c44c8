"""What is ranked last: against a plain statement of the rule, in the pass and after it alike."""

import numpy as np
import pytest

from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.ranking.demotion import (
    DemotedRanking,
    best_classes,
    candidate_mask,
    demote,
    edge_mask,
    video_means,
)
from yt8m_assets.ranking.segments import Segments
from yt8m_assets.ranking.topk import StreamingTopK

SIZES = np.array([12, 3, 1, 20, 7])
BEGINS = np.cumsum(SIZES) - SIZES
CLASSES = np.array([2, 5, 8, 9, 11, 30])


def table() -> Segments:
    ids = np.array([f"vid{number}" for number in range(SIZES.size)])
    start = np.concatenate([np.arange(size) * 5 for size in SIZES])
    return Segments(video_ids=ids, video=np.repeat(np.arange(SIZES.size), SIZES), start=start)


def scores(digits: int = 7) -> np.ndarray:
    return np.random.default_rng(3).random((SIZES.sum(), CLASSES.size)).astype(np.float32).round(digits)


def rank(values: np.ndarray, k: int = 100):
    best = StreamingTopK(CLASSES, k, table())
    best.update(values, 0)
    return best.finish()


def plain(values: np.ndarray, trim: tuple[int, int], num_candidates: int | None) -> dict[int, list[str]]:
    """The rule, segment by segment: (outside, edge, -score, place in the table)."""
    segments, names = table(), table().ids()
    rows: dict[int, list] = {class_id: [] for class_id in CLASSES.tolist()}
    for video, begin in enumerate(BEGINS.tolist()):
        size = int(SIZES[video])
        means = values[begin : begin + size].astype(np.float64).mean(axis=0)
        chosen = sorted(range(CLASSES.size), key=lambda c: (-means[c], c))[: num_candidates or CLASSES.size]
        for place in range(size):
            edge = place < trim[0] or place >= size - trim[1]
            for column, class_id in enumerate(CLASSES.tolist()):
                rows[class_id].append((column not in chosen, edge, -values[begin + place, column], begin + place))
    assert len(segments) == sum(SIZES)
    return {class_id: [str(names[row[3]]) for row in sorted(found)] for class_id, found in rows.items()}


@pytest.mark.parametrize("trim", [(0, 0), (2, 1), (6, 2), (50, 0)])
@pytest.mark.parametrize("num_candidates", [None, 1, 2, 5, 6, 99])
def test_in_the_pass_and_after_it_the_rule_holds(trim: tuple[int, int], num_candidates: int | None) -> None:
    values = scores(4)
    edge = edge_mask(table(), *trim)
    ranked = rank(demote(values, edge, BEGINS, num_candidates))
    assert ranked.to_dict() == plain(values, trim, num_candidates)
    whole = rank(values)
    candidate = candidate_mask(best_classes(video_means(whole), num_candidates or 99), CLASSES.size)
    after = DemotedRanking(whole, edge, candidate)
    for class_id in CLASSES.tolist():
        for got, expected in zip(after.entries(class_id), ranked.entries(class_id), strict=True):
            np.testing.assert_allclose(got, expected, atol=3e-7)
    assert ranked.segment.size == whole.segment.size  # nothing is dropped


def test_a_block_of_other_videos_changes_nothing() -> None:
    """A video's candidates follow from its own segments: the same alone and among others."""
    values = scores()
    edge = edge_mask(table(), 1, 1)
    together = demote(values, edge, BEGINS, 2)
    for video, begin in enumerate(BEGINS.tolist()):
        part = slice(begin, begin + int(SIZES[video]))
        np.testing.assert_array_equal(demote(values[part], edge[part], np.array([0]), 2), together[part])


def test_without_demotions_the_scores_are_untouched() -> None:
    values = scores()
    assert demote(values, np.zeros(len(values), bool), BEGINS, None) is values
    assert demote(values, np.zeros(len(values), bool), BEGINS, CLASSES.size) is values


def test_ties_of_means_go_to_the_earlier_class() -> None:
    assert best_classes(np.array([[1.0, 3.0, 3.0, 3.0]]), 2).tolist() == [[1, 2]]
    with pytest.raises(ConfigError, match="candidate_classes = 0"):
        best_classes(np.zeros((1, 2)), 0)


def test_means_of_whole_lists_are_exact_and_of_cut_lists_a_bound() -> None:
    values = scores()
    exact = np.add.reduceat(values, BEGINS, axis=0, dtype=np.float64) / SIZES[:, None]
    np.testing.assert_allclose(video_means(rank(values)), exact, rtol=1e-12)
    cut = video_means(rank(values, k=20))
    assert (cut >= exact - 1e-12).all()
    assert (cut > exact + 1e-3).any()


def test_a_ranking_with_demotions_has_no_means() -> None:
    with pytest.raises(DataError, match="class 2: a score is -0"):
        video_means(rank(demote(scores(), edge_mask(table(), 1, 0), BEGINS, None)))
