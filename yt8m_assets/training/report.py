"""Pictures and tables of a training run, for the artifact's report folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yt8m_assets.verbatim import for_picture

TITLES = {"map": "MAP", "gap_at_20": "GAP@20"}


def write_report(folder: Path, summary: Mapping[str, Any], title: str) -> list[Path]:
    """Write `history.json` and `curves.png` (loss, learning rate, hold-out score over steps); the paths."""
    history = folder / "history.json"
    names = ("history", "evaluations", "candidates", "headline", "start", "weights")
    history.write_text(json.dumps({name: summary[name] for name in names}, indent=1) + "\n")
    curves = folder / "curves.png"
    plot_curves(curves, summary, title)
    return [history, curves]


def plot_curves(path: Path, summary: Mapping[str, Any], title: str) -> None:
    """Draw loss and learning rate, and where there are evaluations their headline with the compared averages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluations = summary["evaluations"]
    figure = Figure(figsize=(10 if evaluations else 5.5, 3.6))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if evaluations else 1, squeeze=False)[0]
    steps = [point["step"] for point in summary["history"]]
    panels[0].plot(steps, [point["loss"] for point in summary["history"]], color="tab:blue", label="loss")
    figure.subplots_adjust(left=0.08, right=0.97 if evaluations else 0.86, bottom=0.14, wspace=0.42)
    panels[0].set(xlabel="step", ylabel="training loss", title=for_picture(title))
    rates = panels[0].twinx()
    rates.plot(steps, [point["learning_rate"] for point in summary["history"]], color="tab:gray", linestyle=":")
    rates.set(ylabel="learning rate (dotted)", ylim=(0, None))
    if evaluations:
        headline = summary["headline"]
        first = [{"step": 0, **summary["start"]}] if summary["start"] else []
        points = [(entry["step"], entry[headline]) for entry in [*first, *evaluations]]
        panels[1].plot(*zip(*points, strict=True), marker="o", label="checkpoints")
        for name, value in summary["candidates"].items():
            if name not in ("best", "last"):
                panels[1].axhline(value, linestyle="--", linewidth=1, label=f"{name} {value:.4f}", color="tab:orange")
        panels[1].set(xlabel="step", ylabel=f"hold-out {TITLES[headline]}", title=f"published: {summary['weights']}")
        panels[1].legend()
    figure.savefig(path, dpi=110)
