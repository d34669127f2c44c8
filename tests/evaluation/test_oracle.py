import ast
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.truth import test_ratings as hidden_ratings
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.errors import DataError
from yt8m_assets.evaluation import oracle
from yt8m_assets.evaluation.oracle_tables import build_tables

CONFIG = SimulationConfig(num_test_videos=60, num_test_shards=1, max_seconds=90)
ROOT = Path(__file__).parents[2]


def make_videos(config):
    world = build_world(config)
    return [
        SimpleNamespace(video_id=script.video_id, frames=draw_frames(config, world, script, rng))
        for script, rng in shard_scripts(config, world, "test", 0)
    ]


@pytest.fixture(scope="module")
def videos():
    return make_videos(CONFIG)


@pytest.fixture(scope="module")
def ratings():
    return hidden_ratings(CONFIG)


@pytest.fixture(scope="module")
def pairs(ratings):
    return [(*i.split(":"), c) for i, c in ratings]


@pytest.fixture(scope="module")
def scores(videos, pairs):
    return oracle.oracle_scores(CONFIG, videos, [(v, int(s), c) for v, s, c in pairs])


def test_the_oracle_is_near_the_ceiling_and_chance_far_below(videos, ratings):
    assert 0.92 < oracle.oracle_map(CONFIG, ratings, videos) < 0.995
    assert 0.5 < oracle.random_map(ratings) < 0.7  # few ratings a class raise it


def test_scores_are_calibrated_probabilities(scores, ratings):
    truth = np.array(list(ratings.values()))
    assert ((scores > 0) & (scores < 1)).all()
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        chosen = (scores >= low) & (scores < high)
        spread = np.sqrt(0.25 / chosen.sum())
        assert abs(scores[chosen].mean() - truth[chosen].mean()) < 3 * spread


def test_another_chain_of_draws_agrees(videos, pairs, scores):
    some = [(v, int(s), c) for v, s, c in pairs[:100]]
    again = oracle.oracle_scores(CONFIG, videos, some, chain=1)
    assert np.corrcoef(again, scores[:100])[0, 1] > 0.995
    assert not np.array_equal(again, scores[:100])


def test_frames_of_pure_noise_leave_it_at_chance(videos, ratings):
    """The oracle knows nothing but the frames: no start time, no ids, no labels."""
    rng = np.random.default_rng(0)
    noise = [
        SimpleNamespace(
            video_id=v.video_id,
            frames=np.clip((rng.standard_normal(v.frames.shape) + 2) * 63.75, 0, 255).astype(np.uint8),
        )
        for v in videos
    ]
    assert abs(oracle.oracle_map(CONFIG, ratings, noise) - oracle.random_map(ratings)) < 0.08


def test_start_time_and_distance_to_the_edge_tell_little():
    """Pitfall of earlier designs: intervals that stay inside the video give ratings at its edges away."""
    config = SimulationConfig(num_test_videos=1500, num_test_shards=1)
    world = build_world(config)
    scripts = [script for script, _ in shard_scripts(config, world, "test", 0)]
    positive, negative = [], []
    for script in scripts:
        for start, _, score in script.ratings:
            edge = min(start, script.num_seconds - 5 - start) / script.num_seconds
            (positive if score else negative).append((edge, start / script.num_seconds))
    for values in zip(np.array(positive).T, np.array(negative).T, strict=True):
        assert abs(auc(*values) - 0.5) < 0.04


def auc(positive, negative):
    ranks = np.argsort(np.argsort(np.concatenate([positive, negative])))[: len(positive)]
    return (ranks.sum() - len(positive) * (len(positive) - 1) / 2) / (len(positive) * len(negative))


def test_random_map_is_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    ratings = {(f"v:{5 * i}", c): int(s) for c in (1, 2) for i, s in enumerate([1, 0, 1, 0, 0, 1][: 4 + c])}
    drawn = []
    for _ in range(4000):
        per_class = []
        for c in (1, 2):
            order = rng.permutation([s for (_, k), s in ratings.items() if k == c])
            hits = np.flatnonzero(order)
            per_class.append(np.mean([(i + 1) / (rank + 1) for i, rank in enumerate(hits)]))
        drawn.append(np.mean(per_class))
    assert abs(oracle.random_map(ratings) - np.mean(drawn)) < 0.01
    assert oracle.random_map({**ratings, ("v:0", 3): 0}) == oracle.random_map(ratings)  # no positive: not counted


def test_equal_calls_give_equal_scores(videos, pairs, scores):
    again = oracle.oracle_scores(CONFIG, videos, [(v, int(s), c) for v, s, c in pairs])
    np.testing.assert_array_equal(again, scores)


def test_a_class_that_is_never_drawn_is_all_but_impossible():
    rare = SimulationConfig(zipf_exponent=6.0, num_groups=60)  # of 60 classes a few are drawn
    presence = build_tables(rare, 2).presence
    assert presence[-1, -1] == pytest.approx(1e-6)
    assert presence.max() < 1.0


def test_a_pair_without_frames_is_refused(videos):
    with pytest.raises(DataError, match="not among the videos"):
        oracle.oracle_scores(CONFIG, videos, [("nobody", 0, 1)])
    with pytest.raises(DataError, match="no frame at segment start 500"):
        oracle.oracle_scores(CONFIG, videos, [(videos[0].video_id, 500, 1)])
    with pytest.raises(DataError, match="expected video_id:start"):
        oracle.oracle_map(CONFIG, {("abcd", 1): 1}, videos)


@functools.cache
def imported_modules(path):
    return list(_imported_modules(path))


def _imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def module_path(name):
    base = ROOT.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def reachable(start):
    """All modules of the project that the files import, directly or through others (lazily too)."""
    seen, todo = set(), list(start)
    while todo:
        for name in imported_modules(todo.pop()):
            path = module_path(name)
            if name not in seen and path and name.split(".")[0] in ("models", "yt8m_assets", "orchestration"):
                seen.add(name)
                todo.append(path)
    return seen


ORACLE = {f"yt8m_assets.evaluation.{m}" for m in ("oracle", "oracle_tables", "oracle_courses", "oracle_video")}
SECRETS = ORACLE | {f"yt8m_assets.data.simulation.{m}" for m in ("truth", "world", "scripts", "frames")}


def test_what_trains_predicts_or_fuses_cannot_reach_the_oracle():
    learners = [
        p
        for folder in ("models", *(f"yt8m_assets/{name}" for name in ("training", "prediction", "ensemble", "ranking")))
        for p in (ROOT / folder).rglob("*.py")
    ]
    learners += [ROOT / f"yt8m_assets/stages/{name}.py" for name in ("training", "prediction", "ensemble")]
    assert all(map(module_path, SECRETS))
    for path in learners:
        direct = set(imported_modules(path))
        assert not direct & SECRETS, path
        assert not reachable([path]) & ORACLE, path


def test_the_walk_over_imports_sees_an_oracle_user(tmp_path):
    """The check above can fail: a module that reaches the oracle through another one is found."""
    user = tmp_path / "user.py"
    user.write_text("def f():\n    from yt8m_assets.evaluation.oracle import oracle_map\n")
    assert "yt8m_assets.evaluation.oracle_tables" in reachable([user])
