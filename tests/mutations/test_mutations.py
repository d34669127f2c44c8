"""The mutation runner itself: what it changes, which tests it asks, and what it says of the answers."""

import ast
import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.mutations.__main__ import ROOT, Runner, identity, read, run, sample, summary
from tests.mutations.mapping import MAX_FILES, relevant_tests
from tests.mutations.operators import mutations

SOURCE = '''"""Text."""
LIMIT = 10
"""Text."""

def clip(value, low=0):
    """Text."""
    if not value and low < value <= LIMIT:
        raise ValueError("too " + "much")
    logger.warning("said %s", 3)
    note(value, low)
    return value + 1 if value is not None else low
'''
CHANGES = {
    "LIMIT = 11", "low=1", "if (value) and", "if not value or", "low <= value", "value < LIMIT:", "if True:",
    "if False:", "if (not (not value", "        pass\n    logger", "    pass\n    return", "note(low, value)",
    "return None", "value - 1", "value + 2", "if value is None", "1 if True else", "1 if False else",
    'warning("said %s", 4)',
}  # fmt: skip


def test_each_kind_of_change_is_made_and_nothing_that_only_people_read() -> None:
    mutants = [mutation.apply(SOURCE) for mutation in mutations("m.py", SOURCE)]
    for change in CHANGES:
        assert sum(change in mutant for mutant in mutants) == 1, change
    assert len(mutants) == len(CHANGES)
    for mutant in mutants:
        ast.parse(mutant)
        assert mutant.count("Text.") == 3
        assert "XX" not in mutant
    assert [mutation.line for mutation in mutations("m.py", SOURCE)] == sorted(
        m.line for m in mutations("m.py", SOURCE)
    )


def test_text_of_any_width_stays_where_it_is() -> None:
    source = 'a = "\u00fc\u2192" == b\nc = "\u00fc" if x > 1 else (y\n  and z)\n'
    mutants = {mutation.apply(source) for mutation in mutations("m.py", source)}
    assert 'a = "\u00fc\u2192" != b\nc = "\u00fc" if x > 1 else (y\n  and z)\n' in mutants
    assert 'a = "\u00fc\u2192" == b\nc = "\u00fc" if x > 1 else (y\n  or z)\n' in mutants


def test_a_sample_is_drawn_by_its_seed_and_grows_without_changing() -> None:
    first = sample(["yt8m_assets/storage", "yt8m_assets/data"], 50, seed=3)
    assert first == sample(["yt8m_assets/storage", "yt8m_assets/data"], 80, seed=3)[:50]
    assert first != sample(["yt8m_assets/storage", "yt8m_assets/data"], 50, seed=4)
    assert len({mutation.path for mutation in first}) > 10
    for mutation in first:
        source = (ROOT / mutation.path).read_text()
        assert mutation.apply(source) != source
        assert mutation.diff(source).startswith("@@")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("yt8m_assets/storage/remote.py", ["tests/storage/test_remote.py", "tests/faults/test_buckets.py"]),
        ("models/bert.py", ["tests/models/test_bert.py"]),
        (
            "yt8m_assets/storage/backend.py",
            ["tests/storage/test_stateful.py", "tests/storage/test_conformance.py", "tests/storage/test_store.py"],
        ),
        ("yt8m_assets/recipes/demo.py", []),
    ],
)
def test_a_source_is_judged_by_the_tests_that_mirror_and_import_it(source: str, expected: list[str]) -> None:
    found = relevant_tests(ROOT, source)
    assert found[: len(expected[:1])] == expected[:1]
    assert set(expected) <= set(found)
    assert 0 < len(found) <= MAX_FILES
    assert all((ROOT / path).is_file() for path in found)


TWICE = """def twice(x):
    while x > 100:
        x -= 1
    return 2 * x


def odd():
    return 5
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one source, half tested, under git."""
    root = tmp_path / "checkout"
    for name, content in {
        "pyproject.toml": (ROOT / "pyproject.toml").read_text(),  # warnings are errors there
        "yt8m_assets/__init__.py": "",
        "yt8m_assets/twice.py": TWICE,
        "yt8m_assets/untested.py": "def three():\n    return 3\n",
        "yt8m_assets/failing.py": "def four():\n    return 4\n",
        "tests/test_twice.py": "from yt8m_assets.twice import twice\n\ndef test():\n    assert twice(102) == 200\n",
        "tests/test_failing.py": "from yt8m_assets.failing import four\n\ndef test():\n    assert four() == 6\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.mark.slow
def test_the_report_says_what_became_of_each_and_a_second_run_goes_on(
    project: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = ("return 2 / x", "        pass", "return 6", "return 4", "return 5")
    everything = sample(["yt8m_assets"], 100, seed=1, root=project)
    chosen = [m for m in everything if any(line in f"{m.diff((project / m.path).read_text())}" for line in wanted)]
    chosen = [m for m in chosen if f"+    {m.text}" != "+    None"]
    runner = Runner(tmp_path / "copies", num_processes=2, limit_seconds=4, root=project)
    request.addfinalizer(runner.close)
    report = tmp_path / "state" / "report.jsonl"
    rows = list(run(chosen, report, runner, num_processes=2))
    runner.verify(report)
    assert [identity(row) for row in rows] == [identity(asdict(mutation)) for mutation in chosen]
    rows = read(report)
    outcomes = {(Path(row["path"]).stem, row["diff"].split("\n+")[1].strip()): row["outcome"] for row in rows}
    assert outcomes["twice", "return 2 / x"] == "killed"
    assert outcomes["twice", "pass"] == "timeout"
    assert outcomes["twice", "return 6"] == "survived"
    assert outcomes["untested", "return 4"] == "no tests"
    assert outcomes["failing", "return 5"] == "tests fail unmutated"
    assert (project / "yt8m_assets/twice.py").read_text().startswith("def twice(x):\n    while x > 100")
    text = summary(rows)
    assert "yt8m_assets/twice.py:8 constant survived" in text
    assert "-    return 5\n+    return 6" in text

    lines = report.read_text().splitlines()
    report.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    assert len(list(run(chosen, report, runner, num_processes=1))) == len(chosen) - 3
    assert sorted(map(identity, read(report))) == sorted(identity(json.loads(line)) for line in lines)
