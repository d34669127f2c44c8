"""The picture of a study: what each trial reached, and how they learned. Equal trials give equal bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yt8m_assets.verbatim import for_picture

_COLOURS = {"completed": "#2f6fb0", "pruned": "#d1762b", "failed": "#b03a3a"}


def draw_study(rows: Sequence[Mapping[str, Any]], best: int, title: str, path: Path) -> None:
    """Left the scores in the order of the trials, and the best so far; right the learning curves, the best one bold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    scores, curves = figure.subplots(1, 2)
    for status, colour in _COLOURS.items():
        some = [row for row in rows if row["status"] == status and row["score"] is not None]
        if some:
            numbers, values = [row["number"] for row in some], [row["score"] for row in some]
            scores.scatter(numbers, values, color=colour, label=status, s=22)
    reached: list[tuple[int, float]] = []
    for row in rows:
        if row["score"] is not None:
            reached.append((row["number"], max([row["score"], *(score for _, score in reached)])))
    scores.plot(*zip(*reached, strict=True), color="#222222", linewidth=1.2, label="best so far")
    for row in rows:
        if row["curve"]:
            style: Any = {"color": _COLOURS[row["status"]], "linewidth": 2.4 if row["number"] == best else 0.8}
            curves.plot(*zip(*row["curve"], strict=True), marker=".", **style)
    scores.set(xlabel="trial", ylabel="MAP on the hold-out while training")
    curves.set(xlabel="share of the fine-tuning", ylabel="MAP on the hold-out")
    scores.legend(fontsize=8)
    for axes in (scores, curves):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(for_picture(f"{title}: {len(rows)} trials, the best is number {best}"), fontsize=10)
    figure.savefig(path, dpi=110, metadata={"Software": None})
