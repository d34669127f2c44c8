"""Text of others (titles, names, paths) shown as it is, where a medium would take its signs for its own language."""


def for_picture(text: str) -> str:
    """For matplotlib, which sets what stands between two dollar signs as a formula, or fails to."""
    return text.replace("$", r"\$")


def for_markdown(text: str) -> str:
    """For a cell of a Markdown table, whose columns a vertical bar would split."""
    return text.replace("|", r"\|")
