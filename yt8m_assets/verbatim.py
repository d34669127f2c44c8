"""Text of others (titles, names, paths) shown as it is, where a medium would take its signs for its own language."""

from collections.abc import Container, Iterable, Sequence


def for_picture(text: str) -> str:
    """For matplotlib, which sets what stands between two dollar signs as a formula, or fails to."""
    return text.replace("$", r"\$")


def for_markdown(text: str) -> str:
    """For a cell of a Markdown table, whose columns a vertical bar would split."""
    return text.replace("|", r"\|")


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[str]], right: Container[int] = ()) -> str:
    """A Markdown table of plain cells; `right`: the places of columns that are set to the right."""
    places = ["---:" if place in right else "---" for place in range(len(columns))]
    lines = [columns, places, *([for_markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
