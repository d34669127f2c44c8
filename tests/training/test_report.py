import json
from pathlib import Path
from typing import Any

from yt8m_assets.training.report import write_report

SUMMARY: dict[str, Any] = {
    "history": [{"step": step, "loss": 5 / (step + 1), "learning_rate": 1e-3} for step in range(5)],
    "evaluations": [],
    "candidates": {"last": None},
    "headline": None,
    "start": None,
    "weights": "last",
}


def test_curves_are_drawn_with_and_without_evaluations(tmp_path: Path) -> None:
    evaluated = {
        "evaluations": [{"step": 2, "map": 0.5, "seconds": 0.1}, {"step": 4, "map": 0.6, "seconds": 0.1}],
        "candidates": {"best": 0.6, "ema": 0.61},
        "headline": "map",
        "start": {"map": 0.4},
        "weights": "ema",
    }
    sizes = []
    for number, changes in enumerate(({}, evaluated)):
        folder = tmp_path / str(number)
        folder.mkdir()
        history, curves = write_report(folder, {**SUMMARY, **changes}, "a model")
        assert curves.read_bytes().startswith(b"\x89PNG")
        sizes.append(curves.stat().st_size)
        assert json.loads(history.read_text())["weights"] == {**SUMMARY, **changes}["weights"]
    assert sizes[1] > sizes[0]
