from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest

from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames, noise_covariance
from yt8m_assets.data.simulation.scripts import label_only_scripts, shard_scripts
from yt8m_assets.data.simulation.truth import test_ratings as hidden_ratings
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation.oracle import oracle_scores
from yt8m_assets.evaluation.oracle_courses import CourseChain
from yt8m_assets.evaluation.oracle_video import _positive, rater_table, video_oracle_scores

SMALL = {
    "num_classes": 12,
    "num_rated_classes": 8,
    "num_groups": 4,
    "num_test_videos": 30,
    "num_test_shards": 1,
    "min_seconds": 50,
    "max_seconds": 60,
    "max_interval_seconds": 20,
}
TINY = CourseChain(
    gains=np.array([0.8, 1.2]),
    hazard=np.array([0.0, 0.5, 1.0]),
    gap=2,
    num_after=2,
    mean_seconds=2,
    mean_intervals=1.0,
)


def judged(**changes):
    """A dataset's videos, ratings, pairs and their truth."""
    config = SimulationConfig(**(SMALL | changes))
    world = build_world(config)
    videos = [
        SimpleNamespace(video_id=script.video_id, frames=draw_frames(config, world, script, rng))
        for script, rng in shard_scripts(config, world, "test", 0)
    ]
    ratings = hidden_ratings(config)
    pairs = [(name.split(":")[0], int(name.split(":")[1]), class_id) for name, class_id in ratings]
    return config, videos, pairs, np.array(list(ratings.values()))


def log_loss(scores, truth):
    return -np.log(np.where(truth == 1, scores, 1 - scores).clip(1e-3)).mean()


@pytest.fixture(scope="module")
def plain():
    config, videos, pairs, truth = judged()
    return config, videos, pairs, truth, video_oracle_scores(config, videos, pairs)


def test_scores_are_calibrated_probabilities(plain):
    *_, truth, scores = plain
    assert ((scores > 0) & (scores < 1)).all()
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        chosen = (scores >= low) & (scores < high)
        assert abs(scores[chosen].mean() - truth[chosen].mean()) < 3.5 * np.sqrt(0.25 / chosen.sum())


def test_the_whole_video_tells_no_less_than_the_segment(plain):
    config, videos, pairs, truth, scores = plain
    assert log_loss(scores, truth) < log_loss(oracle_scores(config, videos, pairs), truth) + 0.01


@pytest.mark.slow
def test_where_scenes_share_a_background_the_whole_video_tells_more():
    """Classes so weak that a background hides them."""
    weak = {"class_norm_rgb": 1.2, "class_norm_audio": 0.8, "group_norm_rgb": 0.6, "group_norm_audio": 0.4}
    config, videos, pairs, truth = judged(scene_share=0.5, **weak)
    segment = log_loss(oracle_scores(config, videos, pairs, context_seconds=0), truth)
    assert log_loss(video_oracle_scores(config, videos, pairs), truth) < segment - 0.03


@pytest.mark.slow
def test_equal_calls_agree_and_another_chain_nearly(plain):
    config, videos, pairs, _, scores = plain
    np.testing.assert_array_equal(video_oracle_scores(config, videos, pairs), scores)
    again = video_oracle_scores(config, videos, pairs, chain=1)
    assert not np.array_equal(again, scores)
    assert np.corrcoef(again, scores)[0, 1] > 0.97


def test_a_video_that_is_not_given_is_refused(plain):
    config, videos, *_ = plain
    with pytest.raises(DataError, match="not among the videos given"):
        video_oracle_scores(config, videos, [("nobody", 0, 1)])


def test_a_course_is_whitened_as_its_states_are():
    config = SimulationConfig(scene_share=0.3)
    chain, scenes = CourseChain.of(config), np.repeat([0, 1], 20)
    whitening = np.linalg.inv(np.linalg.cholesky(noise_covariance(config, 40, scenes)))
    shapes = chain.whitened(whitening)
    course = np.zeros(40)
    course[7:26] = 0.75  # its mean length, so that what follows it is exact too
    ages, after = len(chain.hazard), 1 + 3 * len(chain.hazard)
    states = np.array([0] * 7 + [1 + age for age in range(19)] + [after + k for k in range(10)])
    assert (chain.state_gain[states] == course[:36]).all()
    np.testing.assert_allclose(shapes[np.arange(36), states], (whitening @ course)[:36], atol=1e-9)
    assert ages == 30


def paths(num_seconds, evidence, energy, shapes, rate, start):
    """Every course of states with its weight: prior times evidence."""
    jump = np.stack([TINY.step(row[None, None], rate)[0, 0] for row in np.eye(TINY.num_states)])
    for states in product(range(TINY.num_states), repeat=num_seconds):
        weight = start[states[0]] * np.prod([jump[a, b] for a, b in pairwise(states)])
        if weight > 0:
            shape = shapes[np.arange(num_seconds), list(states)]
            yield states, weight * np.exp((shape * evidence - 0.5 * energy * shape**2).sum())


def test_filtering_and_drawing_are_those_of_all_courses_counted_one_by_one():
    rng, rate = np.random.default_rng(0), np.array([[0.2]])
    start = TINY.start(rate)
    assert start.sum() == pytest.approx(1.0)
    shapes = np.where(TINY.state_gain > 0, TINY.state_gain, 0.0) + 0.1 * rng.standard_normal((4, TINY.num_states))
    evidence, energy = rng.standard_normal((1, 4, 1)) + 0.5, np.array([1.5])
    filtered, log = TINY.forward(evidence, energy, shapes[None], rate, start)
    weights = dict(paths(4, evidence[0, :, 0], energy[0], shapes, rate, start[0, 0]))
    total = sum(weights.values())
    assert log[0, 0] == pytest.approx(np.log(total))
    draws = TINY.backward(filtered, np.zeros(40_000, int), np.zeros(40_000, int), rng)
    expected: dict[tuple[float, ...], float] = {}
    for states, weight in weights.items():
        gains = tuple(TINY.state_gain[list(states)])
        expected[gains] = expected.get(gains, 0.0) + weight / total
    found, counts = np.unique(draws, axis=0, return_counts=True)
    assert {tuple(row) for row in found} <= set(expected)
    for gains, share in expected.items():
        drawn = counts[(found == gains).all(axis=1)].sum() / 40_000
        assert abs(drawn - share) < 4 * np.sqrt(share / 40_000) + 1e-4


def test_the_chain_is_as_often_active_as_the_videos():
    config = SimulationConfig()
    scripts = list(label_only_scripts(config, build_world(config), 1500))
    truth = np.mean([(a.profile(0, s.num_seconds) > 0).mean() for s in scripts for a in s.activities])
    chain = CourseChain.of(config)
    found = (chain.start(chain.rate(np.array([120.0]))[:, None])[0, 0] * (chain.state_gain > 0)).sum()
    assert found == pytest.approx(truth, abs=0.06)


def test_a_rater_sees_what_is_active_from_the_margin_to_the_whole():
    table = rater_table(SimulationConfig())
    assert table[0] == pytest.approx(0.02)
    assert table[-1] == pytest.approx(0.98, abs=0.01)
    half = table[0b000011111]  # the first three of five seconds, and before
    assert 0.1 < half < 0.7
    assert table[0b000111111] > half > table[0b000001111]


@pytest.mark.parametrize("uniform", [False, True])
def test_a_draw_counts_by_how_likely_it_has_the_segment_rated(uniform):
    """Four segments; three draws: active in the first alone, in the third alone, and nowhere. By hand."""
    config = SimulationConfig(uniform_ratings=uniform)
    active = np.zeros((3, 20), bool)
    active[0, :5] = active[1, 10:15] = True
    seen = rater_table(config)[0b001111111]
    weights = np.ones(3) if uniform else np.array([0.775, 0.225 / 3, 1 / 4])
    expected = weights @ [seen, 0.02, 0.02] / weights.sum()
    assert _positive(config, active, 0) == pytest.approx(expected)
