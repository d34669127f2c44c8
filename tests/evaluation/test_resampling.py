"""The bootstrap: exact rounds, coverage of what it should cover, the paired test."""

import numpy as np
import pytest

from yt8m_assets.errors import ConfigError, DataError
from yt8m_assets.evaluation import Ratings, bootstrap_map, mean_average_precision_at_k, paired_test, ranking_map
from yt8m_assets.evaluation.resampling import _RatedLists
from yt8m_assets.ranking.files import Ranking


def data(num_videos: int, noises: list[float], seed: int = 0, num_classes: int = 6) -> tuple[list[Ranking], Ratings]:
    """Rankings by truth plus noise of the given sizes, and ratings of a tenth of the pairs."""
    generator = np.random.default_rng(seed)
    names = np.array([f"v{video:03d}:{start}" for video in range(num_videos) for start in range(0, 40, 5)])
    truth = generator.normal(size=(names.size, num_classes))
    rated = np.argwhere(generator.random(truth.shape) < 0.1)
    pairs = {(str(names[n]), int(c)): int(truth[n, c] + generator.normal() > 0.3) for n, c in rated}
    rankings = []
    for noise in noises:
        scores = truth + noise * generator.normal(size=truth.shape)
        rankings.append(Ranking.from_dict({c: names[np.argsort(-scores[:, c])].tolist() for c in range(num_classes)}))
    return rankings, Ratings.from_dict(pairs)


def copies(ranking: Ranking, ratings: Ratings, counts: np.ndarray) -> float:
    """MAP of the resampled data by brute force: every drawn copy of a video is a video of its own."""
    times = dict(zip(ratings.video_ids.tolist(), counts.tolist(), strict=True))
    lists = {
        c: [f"{n}#{i}" for n in ids for i in range(times.get(n.split(":")[0], 0))]
        for c, ids in ranking.to_dict().items()
    }
    pairs = {(f"{n}#{i}", c): s for (n, c), s in ratings.to_dict().items() for i in range(times[n.split(":")[0]])}
    return mean_average_precision_at_k(lists, pairs).map


@pytest.mark.parametrize("num_classes", [1, 6])
def test_a_round_is_exactly_the_map_of_the_drawn_copies(num_classes):
    (ranking,), ratings = data(12, [0.5], num_classes=num_classes)
    generator = np.random.default_rng(3)
    num_videos = ratings.video_ids.size
    counts = generator.multinomial(num_videos, np.ones(num_videos) / num_videos, size=8).astype(np.int32)
    reverse = Ranking.from_dict({class_id: ids[::-1] for class_id, ids in ranking.to_dict().items()})
    for lists in (ranking, reverse):  # positives first, and last
        fast = _RatedLists(lists, ratings, 100_000).map(counts)
        assert fast.tolist() == pytest.approx([copies(lists, ratings, row) for row in counts], abs=1e-12)


def test_drawing_every_video_once_is_the_map_itself():
    (ranking,), ratings = data(30, [0.5])
    interval = bootstrap_map(ranking, ratings, num_rounds=50)
    assert interval.value == pytest.approx(ranking_map(ranking, ratings).map, abs=1e-12)
    assert interval.low < interval.value < interval.high
    assert (interval.num_rounds, interval.confidence) == (50, 0.95)


def test_the_seed_decides_the_interval():
    (ranking,), ratings = data(30, [0.5])
    assert bootstrap_map(ranking, ratings, 100, seed=1) == bootstrap_map(ranking, ratings, 100, seed=1)
    assert bootstrap_map(ranking, ratings, 100, seed=1) != bootstrap_map(ranking, ratings, 100, seed=2)


def test_more_videos_make_the_interval_narrower():
    widths = []
    for num_videos in (30, 300):
        (ranking,), ratings = data(num_videos, [0.5])
        interval = bootstrap_map(ranking, ratings, 200)
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.6 * widths[0]


def test_its_standard_error_is_that_of_fresh_data():
    maps = []
    for seed in range(40):
        (ranking,), ratings = data(60, [0.7], seed=seed)
        maps.append(ranking_map(ranking, ratings).map)
    (ranking,), ratings = data(60, [0.7], seed=100)
    assert 0.6 < bootstrap_map(ranking, ratings, 300).standard_error / np.std(maps) < 1.6


def test_the_paired_test_tells_better_from_noise():
    (good, same, bad), ratings = data(80, [0.3, 0.3, 1.5])
    better = paired_test(good, bad, ratings, 300)
    assert better.p_value < 0.02
    assert better.difference.low > 0
    noise = paired_test(good, same, ratings, 300)
    assert noise.p_value > 0.05
    assert noise.difference.low < 0 < noise.difference.high


def test_the_paired_test_is_antisymmetric_and_finds_no_difference_of_a_ranking_to_itself():
    (first, second), ratings = data(40, [0.3, 1.0])
    forward, backward = (paired_test(a, b, ratings, 100) for a, b in ((first, second), (second, first)))
    assert forward.difference.value == pytest.approx(-backward.difference.value)
    assert forward.difference.low == pytest.approx(-backward.difference.high)
    itself = paired_test(first, first, ratings, 100)
    assert (itself.p_value, itself.difference.value) == (1.0, 0.0)


def test_pairing_sees_a_difference_smaller_than_the_intervals():
    (first, second), ratings = data(60, [0.5, 0.6], seed=4)
    difference = paired_test(first, second, ratings, 200).difference
    alone = bootstrap_map(first, ratings, 200)
    assert difference.standard_error < alone.standard_error


def test_the_work_is_done_in_chunks_without_changing_the_figures(monkeypatch):
    (ranking,), ratings = data(20, [0.5])
    whole = bootstrap_map(ranking, ratings, 64)
    monkeypatch.setattr("yt8m_assets.evaluation.resampling._CELLS", 7 * len(ratings))
    assert bootstrap_map(ranking, ratings, 64).value == whole.value
    assert bootstrap_map(ranking, ratings, 64).standard_error == pytest.approx(whole.standard_error, rel=0.5)


def test_what_cannot_be_resampled_is_named():
    (ranking,), ratings = data(10, [0.5])
    with pytest.raises(ConfigError, match="num_rounds = 0"):
        bootstrap_map(ranking, ratings, 0)
    with pytest.raises(ConfigError, match="confidence = 1"):
        bootstrap_map(ranking, ratings, 5, confidence=1)
    with pytest.raises(DataError, match="no ratings"):
        bootstrap_map(ranking, Ratings.from_dict({}))
    with pytest.raises(DataError, match="MAP is undefined"):
        bootstrap_map(ranking, Ratings.from_dict({("v000:0", 0): 0}))
    with pytest.raises(DataError, match="different classes"):
        paired_test(ranking, Ranking.from_dict({99: ["v000:0"]}), ratings)
