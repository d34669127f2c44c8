import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from yt8m_assets.training.report import plot_curves, write_report

SUMMARY: dict[str, Any] = {
    "history": [{"step": step, "loss": 5 / (step + 1), "learning_rate": 1e-3} for step in range(5)],
    "evaluations": [],
    "candidates": {"last": None},
    "headline": None,
    "start": None,
    "weights": "last",
}


EVALUATED: dict[str, Any] = {
    "evaluations": [{"step": 2, "map": 0.5, "seconds": 0.1}, {"step": 4, "map": 0.6, "seconds": 0.1}],
    "candidates": {"best": 0.6, "ema": 0.61},
    "headline": "map",
    "start": {"map": 0.4},
    "weights": "ema",
}


def test_curves_are_drawn_with_and_without_evaluations(tmp_path: Path) -> None:
    sizes = []
    for number, changes in enumerate(({}, EVALUATED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        history, curves = write_report(folder, {**SUMMARY, **changes}, "a model")
        assert curves.read_bytes().startswith(b"\x89PNG")
        sizes.append(imread(curves).shape[:2])
        assert json.loads(history.read_text())["weights"] == {**SUMMARY, **changes}["weights"]
    assert sizes == [(396, 605), (396, 1100)]


def test_the_panels_show_the_points_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: drawn.append(self))
    plot_curves(tmp_path / "a.png", {**SUMMARY, **EVALUATED}, "a model")
    loss, scores, rates = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[step, 5 / (step + 1)] for step in range(5)]
    assert rates.lines[0].get_xydata().tolist() == [[step, 1e-3] for step in range(5)]
    assert scores.lines[0].get_xydata().tolist() == [[0, 0.4], [2, 0.5], [4, 0.6]]
    assert [line.get_label() for line in scores.lines] == ["checkpoints", "ema 0.6100"]
    assert scores.lines[1].get_ydata() == [0.61, 0.61]
    assert (loss.get_title(), scores.get_title()) == ("a model", "published: ema")
    labels = [axes.get_ylabel() for axes in (loss, scores, rates)]
    assert labels == ["training loss", "hold-out MAP", "learning rate (dotted)"]
    assert rates.get_ylim()[0] == 0
    plot_curves(tmp_path / "b.png", SUMMARY, "a model")
    assert len(drawn[1].axes) == 2
