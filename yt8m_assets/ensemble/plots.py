"""Pictures of a weight search: how it converged, and the weights it found. Equal results give equal bytes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yt8m_assets.ensemble.nested import EQUAL

if TYPE_CHECKING:
    from yt8m_assets.ensemble.search import SearchResult

_COLOURS = {"preset": "#222222", "random": "#9a9a9a", "model": "#2f6fb0", "refinement": "#d1762b"}


def plot_search(result: "SearchResult", folder: Path) -> list[Path]:
    """Write convergence.png and weights.png into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "convergence.png", folder / "weights.png"]
    _save(_convergence(result), paths[0])
    _save(_weights(result), paths[1])
    return paths


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure drawn without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _convergence(result: "SearchResult") -> Any:
    figure, axes = _figure(8, 4.2)
    targets = np.array([trial.target for trial in result.trials])
    for phase, colour in _COLOURS.items():
        at = [trial.number for trial in result.trials if trial.phase == phase]
        if at:
            axes.scatter(at, targets[at], s=14, color=colour, label=phase)
    axes.plot(np.maximum.accumulate(targets), color="#222222", linewidth=1.2, label="best so far")
    axes.axhline(result.equal_weights_map, color="#222222", linewidth=0.8, linestyle=":", label="equal weights")
    axes.axhline(result.best_single[1], color="#b03a3a", linewidth=0.8, linestyle="--", label="best single model")
    low = min(float(np.quantile(targets, 0.1)), result.best_single[1], result.equal_weights_map)
    margin = 0.05 * max(result.best.target - low, 1e-6)
    axes.set_ylim(low - margin, result.best.target + 2 * margin)
    axes.set_xlabel("trial")
    axes.set_ylabel("MAP on the hold-out")
    title = f"Best {result.best.target:.4f}, equal weights {result.equal_weights_map:.4f}"
    if result.nested is not None:
        gain, error = result.nested.gain, result.nested.gain_standard_error
        title += f"; on unseen videos the search gains {gain:+.4f} \u00b1 {error:.4f}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right")
    return figure


def _weights(result: "SearchResult") -> Any:
    keys = sorted(result.weights, key=lambda key: result.weights[key])
    figure, axes = _figure(8, 0.8 + 0.32 * len(keys))
    shares = [100 * result.weights[key] for key in keys]
    bars = axes.barh(keys, shares, color="#2f6fb0")
    texts = [f"{share:.1f} %  (alone {result.single_maps[key]:.4f})" for key, share in zip(keys, shares, strict=True)]
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_xlim(0, max(shares) * 1.35)
    axes.set_xlabel("weight, %")
    towards = "equal ones" if result.towards == EQUAL else result.towards
    shrunk = f", shrunk by {result.amount:g} towards {towards}" if result.amount else ""
    axes.set_title(f"Weights{shrunk}, w0 = {result.w0:.3g}", loc="left", fontsize=10)
    return figure
