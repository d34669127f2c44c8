"""The leaderboard's pictures, drawn from its figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yt8m_assets.verbatim import for_picture

NUM_NAMED_CLASSES = 8
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
"""Of Okabe and Ito's colours, which those who see no red or no green can tell apart."""
MARKERS = "osD^v<>P*X"
"""A marker for each model as well: nine colours are too many for anybody."""


def draw_leaderboard(figures: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Draw every picture into a folder; title -> path, the overview first."""
    drawn = {
        "Overview": (_overview, (11.0, 4.6)),
        "Gain per shift": (_shifts, (7.5, 4.2)),
        "Average precision by class frequency": (_frequency, (7.5, 4.2)),
        "Best and worst classes": (_extremes, (8.5, 4.6)),
        "Agreement between models": (_agreement, (6.6, 5.4)),
    }
    paths = {}
    for title, (draw, size) in drawn.items():
        paths[title] = folder / f"{title.lower().replace(' ', '_')}.png"
        _save(draw, figures, size, paths[title])
    return paths


def _save(draw: Any, figures: Mapping[str, Any], size: tuple[float, float], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, figures)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _overview(figure: Any, figures: Mapping[str, Any]) -> None:
    """MAP of each model without and with shifts, the ensemble, and the ceiling; the weights beside it."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    rows = sorted(figures["models"], key=lambda row: row["map_with_tta"])
    ensemble = figures["ensemble"]
    places = range(len(rows))
    low = [row["map_with_tta"] - row["interval"]["low"] for row in rows]
    high = [row["interval"]["high"] - row["map_with_tta"] for row in rows]
    left.errorbar(
        [row["map_with_tta"] for row in rows],
        places,
        xerr=[low, high],
        fmt="o",
        capsize=3,
        color=BLUE,
        label="with shifts",
    )
    left.plot([row["map_without_tta"] for row in rows], places, "o", mfc="white", color=BLUE, label="without")
    interval = ensemble["interval"]
    error = [[ensemble["map"] - interval["low"]], [interval["high"] - ensemble["map"]]]
    left.errorbar([ensemble["map"]], [len(rows)], xerr=error, fmt="D", capsize=3, color=VERMILION, label="ensemble")
    if figures["simulated"]:
        for name, style in (("random", ":"), ("oracle", "--")):
            value = figures["simulated"]["holdout"][name]
            left.axvline(value, color="tab:gray", linestyle=style, label=f"{name} {value:.3f}")
    left.set_yticks(range(len(rows) + 1), [for_picture(row["title"]) for row in rows] + ["ensemble"])
    left.set(xlabel="hold-out MAP (95 % interval over videos)")
    left.legend(fontsize=8, loc="lower right")
    right.barh(places, [100 * row["weight"] for row in rows], color=ORANGE)
    right.set(xlabel="weight in the ensemble, %")


def _shifts(figure: Any, figures: Mapping[str, Any]) -> None:
    """MAP of each shift relative to the model's own ranking without shifts."""
    axes = figure.subplots()
    for number, row in enumerate(figures["models"]):
        shifts = sorted(row["map_by_shift"], key=int)
        gains = [row["map_by_shift"][shift] - row["map_without_tta"] for shift in shifts]
        (line,) = axes.plot(
            [int(shift) for shift in shifts],
            gains,
            marker=MARKERS[number % len(MARKERS)],
            label=for_picture(row["title"]),
        )
        axes.axhline(row["gain_of_tta"], color=line.get_color(), linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="shift of the window, seconds", ylabel="MAP above the unshifted (dotted: all fused)")
    axes.set_xticks(sorted({int(shift) for row in figures["models"] for shift in row["map_by_shift"]}))
    axes.legend(fontsize=7, ncols=2)


def _frequency(figure: Any, figures: Mapping[str, Any]) -> None:
    """The ensemble's AP of each class over how frequent it is."""
    axes = figure.subplots()
    counted = all(row["num_train_videos"] for row in figures["classes"])
    name = "num_train_videos" if counted else "num_positives"
    axes.scatter(
        [row[name] for row in figures["classes"]], [row["average_precision"] for row in figures["classes"]], s=14
    )
    label = "training videos of the class" if counted else "positive hold-out ratings of the class"
    axes.set(xscale="log", xlabel=label, ylabel="average precision")
    axes.axhline(figures["ensemble"]["map"], color=VERMILION, linewidth=0.8, label="MAP")
    axes.legend(fontsize=8)


def _extremes(figure: Any, figures: Mapping[str, Any]) -> None:
    """The classes the ensemble ranks best and worst."""
    axes = figure.subplots()
    rows = figures["classes"]
    num_best = min(NUM_NAMED_CLASSES, (len(rows) + 1) // 2)
    shown = rows[:num_best] + rows[max(num_best, len(rows) - NUM_NAMED_CLASSES) :]
    values = [row["average_precision"] for row in shown]
    axes.barh(range(num_best), values[:num_best], color=BLUE, label="best")
    axes.barh(range(num_best, len(shown)), values[num_best:], color=ORANGE, hatch="//", label="worst")
    axes.legend(fontsize=8)
    names = [f"{for_picture(row['name'][:32])} ({row['num_positives']})" for row in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="average precision (positives in brackets)", xlim=(0, 1))


def _agreement(figure: Any, figures: Mapping[str, Any]) -> None:
    """Rank correlation between the models on the rated segments."""
    axes = figure.subplots()
    fused, matrix = figures["agreement"]["models"], figures["agreement"]["matrix"]
    titles = [for_picture(row["title"]) for row in figures["models"] if row["key"] in fused]
    lowest = min(min(row) for row in matrix)
    picture = axes.imshow(matrix, vmin=lowest, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if value > (1 + lowest) / 2 else "white",
            )
    figure.colorbar(picture, ax=axes, label="rank correlation within classes")
