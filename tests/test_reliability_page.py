"""docs/reliability.md and the tests agree: every row is there once, and names tests that exist or says why not."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
ROWS = [f"F{number:02d}" for number in range(1, 55)]
NO_TEST = "No test: "


def table() -> list[tuple[str, str]]:
    """The rows of the page in its order: (id, last cell)."""
    cells = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if re.match(r"\| *F\d", line)]
    assert all(len(row) == 4 for row in cells)
    return [(row[0].strip(), row[3].strip(" |")) for row in cells]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([\w/]+\.py::\w+)`", cell))


@cache
def existing() -> set[str]:
    """Every test function, as the page writes it; those of a class too."""
    return {
        f"{path.relative_to(TESTS).as_posix()}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows_in_the_name(test: str) -> set[str]:
    return {number.upper() for number in re.findall(r"(?<=_)f\d\d(?=_)", test.split("::")[1])}


def test_every_row_is_there_once_and_in_order() -> None:
    assert [row for row, _ in table()] == ROWS


def test_every_row_has_a_test_or_says_why_not() -> None:
    assert not [row for row, cell in table() if not named(cell) and not cell.startswith(NO_TEST)]
    assert not [row for row, cell in table() if named(cell) and cell.startswith(NO_TEST)]


def test_every_test_that_is_named_exists() -> None:
    text = PAGE.read_text()
    assert named(text) - existing() == set()
    assert text.count("::") == len(re.findall(r"`[\w/]+\.py::\w+`", text)), "a name that is written otherwise"


def test_names_and_rows_agree() -> None:
    """Whoever bears the number of a row stands in it, if on the page at all; a row holds one of those that bear it."""
    rows = {row: named(cell) for row, cell in table()}
    bearing = {test: rows_in_the_name(test) for test in existing()}
    assert {row for numbers in bearing.values() for row in numbers} <= set(ROWS)
    for row, tests in rows.items():
        own = {test for test, numbers in bearing.items() if row in numbers}
        assert not own or own & tests, row
    elsewhere = {
        test
        for test in set().union(*rows.values())
        if bearing[test] and not any(test in rows[row] for row in bearing[test])
    }
    assert not elsewhere
