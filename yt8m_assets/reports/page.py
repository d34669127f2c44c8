"""The leaderboard as one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = """
.wide { overflow-x: auto } th { white-space: nowrap } dt { font-weight: 600 }
th:first-child { position: sticky; left: 0; background: #fff }
dd { margin: 0 0 .4em 0; overflow-wrap: anywhere }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .3em .8em; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } th:first-child { text-align: left }
tbody th { font-weight: inherit }
tr.block th { font-weight: 600; padding-top: 1em } .up { color: #060 } .down { color: #a00 }
img { max-width: 100%; height: auto } .note { color: #666 } tr.total { font-weight: 600; border-top: 2px solid #888 }
@media (max-width: 640px) { body { margin: 1em auto } th, td { padding: .3em .5em }
.wide img { max-width: none; width: 640px } }
"""


def number(value: Any, digits: int = 4) -> str:
    """A figure for a table; a dash where there is none."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def interval_text(interval: Mapping[str, Any]) -> str:
    """`0.812 - 0.840`."""
    return f"{interval['low']:.4f} - {interval['high']:.4f}"


def table_columns(figures: Mapping[str, Any]) -> list[str]:
    """Headings of the table; norm and test MAP only where the data are simulated, the last one for ratings given.

    The folds' is the mean of their MAPs, each ranked by what was trained without it.
    """
    names = ["model", "parameters", "unshifted MAP", "MAP", "95 % interval", "weight %"]
    names += ["folds' MAP"] if _has_folds(figures) else []
    names += ["norm", "test MAP"] if figures["simulated"] else []
    return names + (["given MAP"] if figures.get("given") else [])


def table_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Cells of the table: the models by their MAP with shifts, best first, then the ensemble."""
    simulated, ensemble, given = figures["simulated"], figures["ensemble"], figures.get("given")
    rows = []
    for row in by_map(figures):
        cells = [row["title"], number(row["parameters"]), number(row["map_without_tta"]), number(row["map_with_tta"])]
        cells += [interval_text(row["interval"]), f"{100 * row['weight']:.2f}"]
        cells += [number(row["fold_map"])] if _has_folds(figures) else []
        if simulated:
            cells += [number(simulated["holdout"]["norms"][row["key"]], 3), number(row["test_map"])]
        if given:
            cells.append(number(given["maps"].get(row["key"])))
        rows.append(cells)
    total = ["ensemble", "", "", number(ensemble["map"]), interval_text(ensemble["interval"]), "100.00"]
    total += [""] if _has_folds(figures) else []
    if simulated:
        total += [number(simulated["holdout"]["norms"]["ensemble"], 3), number(simulated["test"]["maps"]["ensemble"])]
    if given:
        total.append(number(given["maps"]["ensemble"]))
    return [*rows, total]


def _has_folds(figures: Mapping[str, Any]) -> bool:
    return "fold_map" in figures["models"][0]


def by_map(figures: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The models' rows, best MAP with shifts first."""
    return sorted(figures["models"], key=lambda row: -row["map_with_tta"])


def remarks(figures: Mapping[str, Any]) -> list[str]:
    """Sentences that put the figures into proportion."""
    ensemble, simulated, gain = figures["ensemble"], figures["simulated"], figures["ensemble"]["gain"]
    best = next(row["title"] for row in figures["models"] if row["key"] == ensemble["best_single"])
    lines = [
        f"Hold-out: {figures['num_ratings']:,} ratings, {figures['num_positive_ratings']:,} of them positive.",
        f"The ensemble gains {gain['value']:+.4f} over {best} ({interval_text(gain)}, p = {gain['p_value']:.3f}). "
        f"Equal weights give {ensemble['equal_map']:.4f}.",
    ]
    lines.append(
        "A MAP here is that of a published ranking, its model's shifts fused. What a model's own page shows was "
        "measured while it trained, in the arithmetic of training and at one window a segment, and can differ "
        "in the third digit."
    )
    lines.append(picking_remark(figures))
    shrinking = ensemble["shrinking"]
    towards = shrinking.get("towards", "equal ones")
    if ensemble["nested"]:
        nested = ensemble["nested"]
        lines.append(
            f"Searched weights are tuned on these ratings; as they are, on videos they were not searched on, they gain "
            f"{nested['gain']:+.4f} +- {nested['gain_standard_error']:.4f} over {towards} (nested cross-validation)."
        )
    lines.append(f"They are shrunk by {shrinking['amount']:g} towards {towards}: {shrinking['reason']}.")
    if figures.get("given"):
        given = figures["given"]
        lines.append(
            f"Given ratings ({given['num_ratings']:,} of {given['source']}): the submission's MAP is "
            f"{given['maps']['ensemble']:.4f} ({interval_text(given['interval'])}); "
            f"{len(given['missing'])} classes with positives are not in it and count 0."
        )
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


def picture_texts(figures: Mapping[str, Any]) -> dict[str, str]:
    """What each picture shows, in words, for who cannot see it."""
    rows, ensemble, classes = by_map(figures), figures["ensemble"], figures["classes"]
    best, worst = rows[0], rows[-1]
    shifts = [
        (value - row["map_without_tta"], shift, row["title"])
        for row in rows
        for shift, value in row["map_by_shift"].items()
    ]
    low, high = min(shifts), max(shifts)
    matrix = figures["agreement"]["matrix"]
    pairs = [value for i, row in enumerate(matrix) for value in row[:i]]
    agreement = f"between {min(pairs):.2f} and {max(pairs):.2f}" if pairs else "of one model with itself"
    return {
        "Overview": f"MAP with intervals: the ensemble {ensemble['map']:.4f}, then {best['title']} "
        f"{best['map_with_tta']:.4f} down to {worst['title']} {worst['map_with_tta']:.4f}; beside it their weights.",
        "Gain per shift": f"MAP of each shift against the unshifted window, from {low[0]:+.4f} ({low[2]}, {low[1]} s) "
        f"to {high[0]:+.4f} ({high[2]}, {high[1]} s).",
        "Average precision by class frequency": f"One point for each of {len(classes)} classes, from "
        f"{classes[-1]['average_precision']:.2f} to {classes[0]['average_precision']:.2f}, over its frequency.",
        "Best and worst classes": f"Best: {classes[0]['name']} {classes[0]['average_precision']:.2f}; worst: "
        f"{classes[-1]['name']} {classes[-1]['average_precision']:.2f}. All of them are in the table below.",
        "Agreement between models": f"Rank correlations of the models' rankings, {agreement}.",
    }


def write_page(
    figures: Mapping[str, Any],
    pictures: Mapping[str, Path],
    path: Path,
    facts: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> None:
    """Write the page: the table, what to make of it, the pictures inline, and where everything is from.

    `facts`: heading -> text, such as date and commit; `links`: heading -> address, such as the runs.
    """
    rows = table_rows(figures)
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in remarks(figures))
    texts = picture_texts(figures)
    shown = "".join(
        f"<h2>{escape(title)}</h2><div class=wide><img alt='{escape(texts.get(title, title))}' src='data:image/png;"
        f"base64,{base64.b64encode(picture.read_bytes()).decode()}'></div>"
        for title, picture in pictures.items()
    )
    body = f"{_table(table_columns(figures), rows, total=True)}{notes}{shown}<h2>Classes</h2>{_class_table(figures)}"
    text = document(f"Leaderboard: recipe {figures['recipe']}", body + _origins(facts or {}, links or {}))
    path.write_text(text, encoding="utf-8")


def document(title: str, body: str) -> str:
    """A page that needs no other file and fits a narrow screen; `body` is HTML, `title` plain text."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{body}</html>\n"
    )


def _origins(facts: Mapping[str, str], links: Mapping[str, str]) -> str:
    """Date, code, files and runs; only addresses of the web become links."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    items += "".join(
        f"<dt>{escape(name)}</dt><dd><a href='{escape(address)}'>{escape(address)}</a></dd>"
        for name, address in links.items()
        if address.startswith(("http://", "https://"))
    )
    return f"<h2>Where this is from</h2><dl>{items}</dl>" if items else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], total: bool = False) -> str:
    """A table that scrolls by itself on a narrow screen; the last row stands out where it is the total."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr{' class=total' if total and row is rows[-1] else ''}>"
        f"<th scope=row>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _class_table(figures: Mapping[str, Any]) -> str:
    rows = [
        [
            row["name"],
            str(row["class_id"]),
            f"{row['average_precision']:.4f}",
            str(row["num_positives"]),
            str(row["num_ratings"]),
        ]
        for row in figures["classes"]
    ]
    return _table(["class", "number", "average precision", "positives", "ratings"], rows)
