"""The ablation as one table: for a terminal, and as Markdown for metadata."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from yt8m_assets import verbatim

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("switch", "setting", "MAP", "95 % interval", "gain", "95 % interval", "p", "note")
_NUMBERS = range(2, 7)
CAPTION = (
    "Out-of-fold MAP@100,000 of lists of {top_k} on {num_ratings} ratings ({num_positive_ratings} positive), "
    "{bootstrap_rounds} bootstrap rounds over videos. A gain is that over the first setting of its block, tested on "
    "the same videos. * what the recipe does. The ensemble's weights are the searched ones unless named; tuned on "
    "these ratings."
)


def table_rows(figures: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """The cells of every effect, and the notes that their last cells number."""
    rows: list[list[str]] = []
    notes: list[str] = []
    for effect in figures["effects"]:
        quality, interval, gain, gain_interval, p_value = "", "", "", "", ""
        if effect["map"] is not None:
            quality, interval = f"{effect['map']:.4f}", f"{effect['low']:.4f}..{effect['high']:.4f}"
        if effect["gain"] is not None:
            gain, gain_interval = f"{effect['gain']:+.4f}", f"{effect['gain_low']:+.4f}..{effect['gain_high']:+.4f}"
            p_value = f"{effect['p_value']:.3f}"
        if effect["note"] and effect["note"] not in notes:
            notes.append(effect["note"])
        number = str(notes.index(effect["note"]) + 1) if effect["note"] else ""
        head = [_switch(effect), effect["setting"] + (" *" if effect["in_recipe"] else "")]
        rows.append([*head, quality, interval, gain, gain_interval, p_value, number])
    return rows, notes


def _switch(effect: Mapping[str, Any]) -> str:
    """The first cell, which a block's later rows leave empty."""
    if effect["gain"] is not None:
        return ""
    return effect["stage"] if effect["subject"] == "ensemble" else f"{effect['stage']}: {effect['subject']}"


def ablation_table(figures: Mapping[str, Any]) -> "Table":
    """The table for a terminal, notes below; a gain whose interval leaves out zero is coloured."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows, notes = table_rows(figures)
    caption = "\n".join([CAPTION.format(**figures), *(f"{n}: {note}" for n, note in enumerate(notes, 1))])
    title = escape(f"What each switch is worth, recipe {figures['recipe']}")
    table = Table(title=title, caption=escape(caption), caption_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for place, name in enumerate(COLUMNS):
        justify: Literal["left", "right"] = "right" if place in _NUMBERS else "left"
        table.add_column(name, justify=justify, no_wrap=True)
    before = None
    for effect, row in zip(figures["effects"], rows, strict=True):
        if before not in (None, effect["stage"]):
            table.add_section()
        before = effect["stage"]
        cells = [escape(cell) for cell in row]
        if effect["gain"] is not None and not effect["gain_low"] <= 0 <= effect["gain_high"]:
            cells[4] = f"[{'green' if effect['gain'] > 0 else 'red'}]{cells[4]}[/]"
        table.add_row(*cells)
    return table


def markdown_table(figures: Mapping[str, Any]) -> str:
    """The same as Markdown, with caption and notes below."""
    rows, notes = table_rows(figures)
    table = verbatim.markdown_table(COLUMNS, rows, _NUMBERS)
    numbered = "".join(f"\n{number}. {note}" for number, note in enumerate(notes, 1))
    return f"{table}\n\n{CAPTION.format(**figures)}\n{numbered}"
