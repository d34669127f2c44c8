"""The leaderboard as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } td:first-child, th:first-child { text-align: left }
img { max-width: 100%; height: auto } .note { color: #666 } tr.total { font-weight: 600; border-top: 2px solid #888 }
"""


def number(value: Any, digits: int = 4) -> str:
    """A figure for a table; a dash where there is none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def interval_text(interval: Mapping[str, Any]) -> str:
    """`0.812 - 0.840`."""
    return f"{interval['low']:.4f} - {interval['high']:.4f}"


def table_columns(figures: Mapping[str, Any]) -> list[str]:
    """Headings of the table; the last two only where the data are simulated."""
    names = ["model", "parameters", "MAP", "MAP with shifts", "95 % interval", "weight %"]
    return names + (["norm", "unseen test MAP"] if figures["simulated"] else [])


def table_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table: the models in the recipe's order, then the ensemble."""
    simulated, ensemble = figures["simulated"], figures["ensemble"]
    rows = []
    for row in figures["models"]:
        cells = [row["title"], number(row["parameters"]), number(row["map_without_tta"]), number(row["map_with_tta"])]
        cells += [interval_text(row["interval"]), f"{100 * row['weight']:.2f}"]
        if simulated:
            cells += [number(simulated["holdout"]["norms"][row["key"]], 3), number(row["test_map"])]
        rows.append(cells)
    total = ["ensemble", "", "", number(ensemble["map"]), interval_text(ensemble["interval"]), "100.00"]
    if simulated:
        total += [number(simulated["holdout"]["norms"]["ensemble"], 3), number(simulated["test"]["maps"]["ensemble"])]
    return [*rows, total]


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """Sentences that put the figures into proportion."""
    ensemble, simulated, gain = figures["ensemble"], figures["simulated"], figures["ensemble"]["gain"]
    best = next(row["title"] for row in figures["models"] if row["key"] == ensemble["best_single"])
    lines = [
        f"Hold-out: {figures['num_ratings']:,} ratings, {figures['num_positive_ratings']:,} of them positive.",
        f"The ensemble gains {gain['value']:+.4f} over {best} ({interval_text(gain)}, p = {gain['p_value']:.3f}). "
        f"Equal weights give {ensemble['equal_map']:.4f}.",
    ]
    lines.append(picking_remark(figures))
    if ensemble["nested"]:
        nested = ensemble["nested"]
        lines.append(
            f"Searched weights are tuned on these ratings; as they are, on videos they were not searched on, they gain "
            f"{nested['gain']:+.4f} +- {nested['gain_standard_error']:.4f} over equal ones (nested cross-validation)."
        )
    shrinking = ensemble["shrinking"]
    lines.append(f"They are shrunk by {shrinking['amount']:g} towards equal ones: {shrinking['reason']}.")
    if simulated:
        for split, name in (("holdout", "Hold-out"), ("test", "Unseen test videos")):
            part = simulated[split]
            lines.append(
                f"{name}, simulated: random {part['random']:.4f}, oracle {part['oracle']:.4f}, "
                f"ensemble {part['maps']['ensemble']:.4f}, norm {number(part['norms']['ensemble'], 3)} "
                f"(norm = (MAP - random) / (oracle - random))."
            )
    return lines


def picking_remark(figures: Mapping[str, Any]) -> str:
    """What it means that every model's weights were picked by the MAP that is shown."""
    picked = [row for row in figures["models"] if row["picking"]["num_candidates"] > 1]
    if not picked:
        return "No model's weights were picked among several by their hold-out MAP."
    most = max(row["picking"]["num_candidates"] for row in picked)
    text = (
        f"A model's weights are the best of up to {most} checkpoints by the MAP on these same ratings, so its MAP is a "
        "little too high, and its interval does not know of it"
    )
    known = [row for row in picked if row["picking"]["optimism"] is not None]
    if not known:
        return f"{text}; by how much cannot be said: no scores on halves of the videos were published."
    sizes = [row["picking"]["optimism"] for row in known]
    largest = known[sizes.index(max(sizes))]["title"]
    return (
        f"{text}: picking on half of the videos flatters a MAP there by {sum(sizes) / len(sizes):.4f} on average, at "
        f"most {max(sizes):.4f} ({largest}); on all of them it is less."
    )


def write_page(figures: Mapping[str, Any], pictures: Mapping[str, Path], path: Path) -> None:
    """Write the page: the table, what to make of it, and the pictures inline."""
    head = "".join(f"<th>{escape(name)}</th>" for name in table_columns(figures))
    rows = table_rows(figures)
    body = "".join(
        f"<tr{' class=total' if row is rows[-1] else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in remarks(figures))
    shown = "".join(
        f"<h2>{escape(title)}</h2><img alt='{escape(title)}' src='data:image/png;base64,"
        f"{base64.b64encode(picture.read_bytes()).decode()}'>"
        for title, picture in pictures.items()
    )
    title = f"Leaderboard: recipe {escape(figures['recipe'])}"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}{shown}"
        f"<h2>Classes</h2>{_class_table(figures)}</html>\n",
        encoding="utf-8",
    )


def _class_table(figures: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(row['name'])}</td><td>{row['class_id']}</td><td>{row['average_precision']:.4f}</td>"
        f"<td>{row['num_positives']}</td><td>{row['num_ratings']}</td></tr>"
        for row in figures["classes"]
    )
    head = "<th>class</th><th>number</th><th>average precision</th><th>positives</th><th>ratings</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
