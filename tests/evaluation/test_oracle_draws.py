"""The oracle's bookkeeping: what is left unexplained is always the frames less all courses that are drawn now."""

from types import SimpleNamespace

import numpy as np
import pytest

from yt8m_assets.data.simulation import SimulationConfig
from yt8m_assets.data.simulation.frames import draw_frames
from yt8m_assets.data.simulation.scripts import shard_scripts
from yt8m_assets.data.simulation.truth import test_ratings as hidden_ratings
from yt8m_assets.data.simulation.world import build_world
from yt8m_assets.evaluation import oracle
from yt8m_assets.evaluation.oracle_tables import build_tables

CONFIG = SimulationConfig(num_test_videos=20, num_test_shards=1, max_seconds=90)


def make_gibbs() -> oracle._Gibbs:
    world = build_world(CONFIG)
    videos = [
        SimpleNamespace(video_id=script.video_id, frames=draw_frames(CONFIG, world, script, rng))
        for script, rng in shard_scripts(CONFIG, world, "test", 0)
    ]
    ratings = [(*segment.split(":"), class_id) for segment, class_id in hidden_ratings(CONFIG)]
    pairs = [(video, int(start), class_id) for video, start, class_id in ratings]
    windows = oracle._read_windows(world, videos, pairs, 2)
    targets = np.array([class_id for _, _, class_id in pairs])
    return oracle._Gibbs(CONFIG, world, build_tables(CONFIG, 2), targets, windows, np.random.default_rng(0))


def explained(gibbs: oracle._Gibbs) -> np.ndarray:
    """What the courses that are drawn now make of the products."""
    vectors = np.arange(CONFIG.num_classes) * CONFIG.num_modes + gibbs.mode  # [n, C]
    return np.asarray(np.einsum("ncw,nck->nwk", gibbs.course, gibbs.gram[vectors]))


def test_what_is_left_is_the_frames_less_what_is_drawn() -> None:
    gibbs = make_gibbs()
    products = gibbs.residual.copy()
    gibbs.run()
    assert np.abs(explained(gibbs)).max() > 0.5
    np.testing.assert_allclose(gibbs.residual, products - explained(gibbs), atol=1e-9)


def test_the_same_course_in_another_appearance_is_another_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    gibbs = make_gibbs()
    products = gibbs.residual.copy()
    gibbs.run()
    table, class_id = gibbs.tables.rated, int(gibbs.targets[0])
    (member, *_) = np.flatnonzero((gibbs.targets == class_id) & gibbs.course[:, class_id].any(axis=1))
    row = int(np.flatnonzero((table.profiles == gibbs.course[member, class_id]).all(axis=1))[0])
    certain = np.zeros((1, CONFIG.num_modes * len(table.profiles)))
    other = (gibbs.mode[member, class_id] + 1) % CONFIG.num_modes
    certain[0, other * len(table.profiles) + row] = 1.0
    monkeypatch.setattr(gibbs, "_posterior", lambda *arguments: certain)
    gibbs._draw(class_id, np.array([member]))
    assert gibbs.mode[member, class_id] == other
    np.testing.assert_allclose(gibbs.residual, products - explained(gibbs), atol=1e-9)


def test_a_class_that_need_not_be_there_is_silent_by_absence_or_by_its_course() -> None:
    gibbs = make_gibbs()
    table, members = gibbs.tables.present, np.arange(len(gibbs.targets))
    for class_id in (0, 7):
        presence = gibbs.tables.presence[gibbs.targets, class_id]
        found = np.exp(gibbs._log_prior(class_id, members, table))
        prior = np.exp(table.log_prior)
        np.testing.assert_allclose(found[:, 1:], presence[:, None] * prior[1:])
        np.testing.assert_allclose(found.sum(axis=1), 1 - presence + presence * prior.sum())
