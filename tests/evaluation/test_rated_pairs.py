from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.training.support import FEATURE_SIZES, NUM_CLASSES, RATED, write_shards
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.data.dataset.reading import Reading
from yt8m_assets.data.dataset.segments import SegmentTable
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.rated_pairs import NUM_DIVISIONS, RatedPairs


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SegmentTable:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    uris = sorted(map(str, folder.glob("validate*.tfrecord")))
    videos = load_videos(uris, Reading(max_frames=30, feature_sizes=FEATURE_SIZES))
    return SegmentTable(videos, num_classes=NUM_CLASSES)


def plain_map(scores: dict[tuple[int, int], float], labels: dict[tuple[int, int], bool], ids: list[Any]) -> float:
    """The average precisions by the book, one class at a time; equal scores by id."""
    precisions = []
    for column in sorted({c for _, c in scores}):
        ranked = sorted((s for s, c in scores if c == column), key=lambda s: (-scores[s, column], ids[s]))
        hits, total = 0, 0.0
        for rank, segment in enumerate(ranked, start=1):
            if labels[segment, column]:
                hits += 1
                total += hits / rank
        if hits:
            precisions.append(total / hits)
    return sum(precisions) / len(precisions)


def test_map_equals_the_plain_loop_with_ties_by_id(table: SegmentTable) -> None:
    pairs = RatedPairs.of(table)
    assert pairs.class_ids.tolist() == sorted(RATED)
    ids = list(zip(table.video_ids, table.starts.tolist(), strict=True))
    rng = np.random.default_rng(0)
    for digits in (1, 6):
        values = rng.random(len(pairs.rows)).round(digits)
        keys = list(zip(pairs.rows.tolist(), pairs.columns.tolist(), strict=True))
        scores = dict(zip(keys, values.tolist(), strict=True))
        labels = dict(zip(keys, pairs.positive.tolist(), strict=True))
        assert pairs.map(values) == pytest.approx(plain_map(scores, labels, ids), abs=1e-12)


def test_a_class_without_a_positive_is_left_out() -> None:
    pairs = RatedPairs(
        rows=np.array([0, 1, 0, 1]),
        columns=np.array([0, 0, 1, 1]),
        positive=np.array([True, False, False, False]),
        class_ids=np.array([3, 7]),
        tie_order=np.array([0, 1]),
        in_first_half=np.zeros((1, 4), bool),
    )
    assert pairs.map(np.array([0.1, 0.9, 0.5, 0.5])) == 0.5
    assert pairs.half_scores(np.array([0.1, 0.9, 0.5, 0.5])) == {}  # nothing lies in the first half


def test_scores_on_halves_are_those_of_half_of_the_videos(table: SegmentTable) -> None:
    pairs = RatedPairs.of(table)
    values = np.random.default_rng(0).random(len(pairs.rows))
    found = pairs.half_scores(values)
    assert set(found) == {f"half_{number}{side}" for number in range(NUM_DIVISIONS) for side in "ab"}
    ids = list(zip(table.video_ids, table.starts.tolist(), strict=True))
    videos = np.array(table.video_ids)[pairs.rows]
    for number, first in enumerate(pairs.in_first_half):
        assert not set(videos[first]) & set(videos[~first])  # a video is on one side, and half of them on each
        assert len(set(table.video_ids)) // 2 - 2 <= len(set(videos[first])) <= len(set(table.video_ids)) // 2
        for side, chosen in (("a", first), ("b", ~first)):
            keys = list(zip(pairs.rows[chosen].tolist(), pairs.columns[chosen].tolist(), strict=True))
            scores = dict(zip(keys, values[chosen].tolist(), strict=True))
            labels = dict(zip(keys, pairs.positive[chosen].tolist(), strict=True))
            assert found[f"half_{number}{side}"] == pytest.approx(plain_map(scores, labels, ids), abs=1e-12)
    assert len({tuple(first) for first in pairs.in_first_half.tolist()}) == NUM_DIVISIONS


def test_the_pairs_are_the_ratings_of_the_table(table: SegmentTable) -> None:
    pairs, ratings = RatedPairs.of(table), table.ratings
    found = zip(pairs.rows.tolist(), pairs.class_ids[pairs.columns].tolist(), pairs.positive.tolist(), strict=True)
    segments = table.rating_segments.tolist()
    assert sorted(found) == sorted(zip(segments, ratings.class_ids.tolist(), ratings.scores > 0, strict=True))
    named = sorted(range(len(table)), key=lambda segment: (table.video_ids[segment], table.starts[segment]))
    assert pairs.tie_order[named].tolist() == list(range(len(table)))


def test_ratings_that_are_all_negative_are_refused(table: SegmentTable, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = replace(table.ratings, scores=np.zeros_like(table.ratings.scores))
    monkeypatch.setattr(table, "ratings", ratings)
    with pytest.raises(DataError, match="no positively rated segment"):
        RatedPairs.of(table)
