"""The soak's own judgement; the soak itself is `make soak`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.sampling import sample_processes, sample_state, trends
from tests.soak.work import ORDERS, num_materialisations
from yt8m_assets.stages.nodes import ASSETS


def samples(per_run: float, noise: float, restart: float = 0.0) -> list[dict[str, float]]:
    """Two sessions of 60 runs each, the second with another start."""
    return [
        {
            "runs": runs,
            "session": 1 + (runs > 60),
            "MB": 300 + per_run * runs + noise * (-1) ** (runs // 5) + restart * (runs > 60),
        }
        for runs in range(0, 121, 5)
    ]


@pytest.mark.parametrize(
    ("per_run", "noise", "restart", "verdict"),
    [(0, 0, 0, "flat"), (0, 5, -100, "flat"), (0.001, 0, 0, "flat"), (0.2, 1, -30, "grows"), (-1, 0, 500, "flat")],
)
def test_what_grows_is_told_from_noise_and_from_a_restart(
    per_run: float, noise: float, restart: float, verdict: str
) -> None:
    (found,) = trends(samples(per_run, noise, restart)).values()
    assert found.verdict == verdict
    assert found.per_100_runs == pytest.approx(100 * per_run, abs=10 * noise + 1e-9)


def test_two_samples_of_a_session_say_nothing() -> None:
    assert trends(samples(1, 0)[:4]) == {}


def test_a_process_and_a_folder_are_sampled(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.log").write_bytes(bytes(1_000_000))
    try:
        found = {**sample_processes(os.getpid()), **sample_state(tmp_path)}
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(10)
    assert found["ui threads"] >= 1
    assert found["other handles"] >= 3
    assert found["ui rss MB"] > found["other rss MB"] > 1
    assert (found["logs MB"], found["logs files"], found["mlflow files"]) == (1, 1, 0)


def test_every_asset_has_its_turn() -> None:
    """Of a recipe without folds and refit."""
    ordered = [asset for _, assets, _ in ORDERS for asset in assets]
    assert sorted(ordered) == sorted(set(ASSETS) - {"fold_ranking", "refitted_model"})
    assert num_materialisations(2 * len(ORDERS)) == 2 * len(ordered)
