"""The table as people see it: wide enough without a terminal, notes numbered, nothing taken for markup."""

import io
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from yt8m_assets.reports.ablation import Effect
from yt8m_assets.reports.ablation_page import write_ablation_page
from yt8m_assets.reports.ablation_table import ablation_table, markdown_table, table_rows

INTERVAL = {"low": 0.4, "high": 0.6}
GAIN = {"gain": 0.0123, "gain_low": 0.001, "gain_high": 0.02, "p_value": 0.0399}
EFFECTS = [
    Effect(stage="trimming", subject="ensemble", setting="off", map=0.5, in_recipe=True, **INTERVAL),
    Effect(stage="trimming", subject="ensemble", setting="first 1", map=0.5123, note="a bound", **INTERVAL, **GAIN),
    Effect(stage="shifts", subject="gated_netvlad_h1024c16", setting="0", map=0.5, note="a bound", **INTERVAL),
    Effect(stage="loss", subject="ensemble", setting="rated", note='needs {"models": ["one"]}'),
]
FIGURES = {
    "recipe": "tiny [red]",
    "top_k": 100_000,
    "num_ratings": 9,
    "num_positive_ratings": 4,
    "bootstrap_rounds": 20,
    "effects": [asdict(effect) for effect in EFFECTS],
}


def test_every_figure_is_in_the_plain_table() -> None:
    console = Console(file=io.StringIO(), width=130, highlight=False)
    console.print(ablation_table(FIGURES))
    columns = [column.justify for column in ablation_table(FIGURES).columns]
    assert columns == ["left", "left", *["right"] * 5, "left"]
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 130
    text = "\n".join(lines)
    assert "\x1b" not in text
    row = next(line for line in lines if "first 1" in line)
    assert row.split() == ["first", "1", "0.5123", "0.4000..0.6000", "+0.0123", "+0.0010..+0.0200", "0.040", "1"]
    assert "shifts: gated_netvlad_h1024c16" in text
    assert "off *" in text
    assert "1: a bound" in text
    assert "recipe tiny [red]" in text
    assert '2: needs {"models": ["one"]}' in text


def test_equal_notes_share_a_number_and_a_row_without_figures_is_empty() -> None:
    rows, notes = table_rows(FIGURES)
    assert notes == ["a bound", 'needs {"models": ["one"]}']
    assert [row[-1] for row in rows] == ["", "1", "1", "2"]
    assert rows[-1][2:7] == ["", "", "", "", ""]


def test_a_sure_gain_is_coloured_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=130, force_terminal=True, color_system="standard")
    console.print(ablation_table(FIGURES))
    assert "\x1b[32m+0.0123" in console.file.getvalue()


def test_markdown_has_a_line_a_row_and_the_notes() -> None:
    lines = markdown_table(FIGURES).splitlines()
    assert lines[0].startswith("| switch | setting | MAP |")
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    assert len({line.count("|") for line in lines[: 2 + len(EFFECTS)]}) == 1
    assert lines[-2:] == ["1. a bound", '2. needs {"models": ["one"]}']


def test_the_page_needs_no_other_file_and_draws_each_gain(tmp_path: Path) -> None:
    write_ablation_page(FIGURES, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"<script|<link|src=|href=|url\(|@import", page)
    assert "<meta name=viewport content='width=device-width, initial-scale=1'>" in page
    assert "<h1>What each switch is worth: recipe tiny [red]</h1>" in page
    assert page.count("<th scope=row>") == len(EFFECTS)
    headings = re.findall("<tr class=block><th scope=rowgroup colspan=8>(.*?)</th></tr>", page)
    assert headings == ["trimming", "shifts: gated_netvlad_h1024c16", "loss"]
    assert "<li>needs {&quot;models&quot;: [&quot;one&quot;]}</li>" in page
    (drawn,) = re.findall("<svg.*?</svg>", page)
    assert "aria-label='gain +0.0123, interval +0.0010 to +0.0200'" in drawn
    low, high = (float(x) for x in re.search(r"<line x1=([\d.]+) x2=([\d.]+) y1=8", drawn).groups())  # type: ignore[union-attr]
    place = float(re.search("<circle cx=([0-9.]+)", drawn)[1])  # type: ignore[index]
    assert 80 < low < place < high < 160, "right of the line at zero, the interval around it"
    assert (high - 80) / (low - 80) == pytest.approx(20, rel=0.05)
    assert "<span class=up>+0.0123</span>" in page


@pytest.mark.parametrize(("low", "high", "kind"), [(-0.02, -0.01, "down"), (-0.02, 0.001, "note"), (0.0, 0.0, "note")])
def test_a_gain_that_is_none_looks_like_none(low: float, high: float, kind: str, tmp_path: Path) -> None:
    gain = {"gain": (low + high) / 2, "gain_low": low, "gain_high": high, "p_value": 0.5}
    effects = [FIGURES["effects"][0], {**FIGURES["effects"][1], **gain}]
    write_ablation_page({**FIGURES, "effects": effects}, tmp_path / "page.html")
    assert f"<span class={kind}>" in (tmp_path / "page.html").read_text()
