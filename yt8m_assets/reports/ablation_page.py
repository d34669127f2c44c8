"""The ablation as one HTML page that needs no other file: its table, each gain drawn with its interval."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from yt8m_assets.reports.ablation_table import CAPTION, COLUMNS, table_rows
from yt8m_assets.reports.page import document

PAGE_FILE = "ablation.html"
_WIDTH, _HEIGHT = 160, 16


def write_ablation_page(figures: Mapping[str, Any], path: Path) -> None:
    """Write the page of `ablate`'s figures."""
    rows, notes = table_rows(figures)
    effects = figures["effects"]
    tested = [effect for effect in effects if effect["gain"] is not None]
    span = max((abs(effect[end]) for effect in tested for end in ("gain_low", "gain_high")), default=0.0) or 1.0
    columns = [*COLUMNS[1:5], "gain drawn", *COLUMNS[5:]]
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    body = "".join(_row(effect, cells, span) for effect, cells in zip(effects, rows, strict=True))
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    path.write_text(
        document(
            f"What each switch is worth: recipe {figures['recipe']}",
            f"<p class=note>{escape(CAPTION.format(**figures))}</p><p>A bar is the interval of a gain, on a scale of "
            f"{-span:+.4f} to {span:+.4f}; grey where it holds zero.</p><div class=wide><table><thead><tr>{head}</tr>"
            f"</thead><tbody>{body}</tbody></table></div>" + (f"<h2>Notes</h2><ol>{items}</ol>" if items else ""),
        ),
        encoding="utf-8",
    )


def _row(effect: Mapping[str, Any], cells: list[str], span: float) -> str:
    """A row, below a heading where a block begins."""
    switch, setting, *numbers = map(escape, cells)
    numbers[2] = f"<span class={_kind(effect)}>{numbers[2]}</span>" if numbers[2] else ""
    numbers.insert(3, _drawn(effect, span))
    rest = "".join(f"<td>{cell}</td>" for cell in numbers)
    heading = f"<tr class=block><th scope=rowgroup colspan={len(COLUMNS)}>{switch}</th></tr>" if switch else ""
    return f"{heading}<tr><th scope=row>{setting}</th>{rest}</tr>"


def _kind(effect: Mapping[str, Any]) -> str:
    """Whether a gain is one: `up`, `down`, or `note` where its interval holds zero."""
    return "note" if effect["gain_low"] <= 0 <= effect["gain_high"] else "up" if effect["gain"] > 0 else "down"


def _drawn(effect: Mapping[str, Any], span: float) -> str:
    """The gain as a dot on its interval; its figures stand in the cells beside it."""
    if effect["gain"] is None:
        return ""
    place = {name: _WIDTH / 2 * (1 + 0.97 * effect[name] / span) for name in ("gain", "gain_low", "gain_high")}
    middle, colour = _HEIGHT / 2, {"up": "#060", "down": "#a00", "note": "#888"}[_kind(effect)]
    return (
        f"<svg role=img aria-label='gain {effect['gain']:+.4f}, interval {effect['gain_low']:+.4f} to "
        f"{effect['gain_high']:+.4f}' width={_WIDTH} height={_HEIGHT}>"
        f"<line x1={_WIDTH / 2} x2={_WIDTH / 2} y1=0 y2={_HEIGHT} stroke='#bbb'/>"
        f"<line x1={place['gain_low']:.1f} x2={place['gain_high']:.1f} y1={middle} y2={middle} stroke='{colour}' "
        f"stroke-width=3 /><circle cx={place['gain']:.1f} cy={middle} r=4 fill='{colour}'/></svg>"
    )
