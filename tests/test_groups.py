"""Tests that share something costly say so by a group: pytest-xdist runs a group in one process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_process(number):
    (pathlib.Path({folder!r}) / f"{{number}} {{os.getpid()}}").touch()
"""


def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_collection_modifyitems\n")
    (tmp_path / "test_group.py").write_text(TESTS.format(folder=str(tmp_path / "pids")))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider", "."]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(
        command, cwd=tmp_path, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    processes = [path.name.split(" ") for path in (tmp_path / "pids").iterdir()]
    assert sorted(number for number, _ in processes) == [str(number) for number in range(8)]
    assert len({process for _, process in processes}) == 1
