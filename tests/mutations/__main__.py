"""Random single mutations of the sources against their tests: what of the behaviour no test would miss.

    python -m tests.mutations --sample 300 --seed 1 --paths yt8m_assets models

Each mutation is made in a scratch copy of the project. A line of JSON is written as each is done; the same command goes
on where it was stopped.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.mutations.mapping import relevant_tests
from tests.mutations.operators import Mutation, compiles, mutations

ROOT = Path(__file__).parents[2]
SURVIVED, KILLED, TIMEOUT, NO_TESTS, BROKEN = "survived", "killed", "timeout", "no tests", "tests fail unmutated"


def sample(paths: list[str], count: int, seed: int, root: Path = ROOT) -> list[Mutation]:
    """`count` mutations of the files below `paths`, drawn by seed; the first n of a larger sample are the same."""
    files = [
        file for path in paths for file in ([root / path] if path.endswith(".py") else (root / path).rglob("*.py"))
    ]
    sources = {file.relative_to(root).as_posix(): file.read_text() for file in files}
    everything = [mutation for path, source in sorted(sources.items()) for mutation in mutations(path, source)]
    random.Random(seed).shuffle(everything)
    good = (mutation for mutation in everything if compiles(mutation.apply(sources[mutation.path])))
    return list(islice(good, count))


def copy_project(target: Path, root: Path = ROOT) -> None:
    """The files of a checkout that git knows or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in names:
        if name and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((root / name).read_bytes())


def run_tests(project: Path, tests: list[str], seconds: float) -> tuple[str, str, float]:
    """(outcome, the failing test or the last words, seconds) of tests in a copy of the project."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-o",
        f"cache_dir={project}/.pytest_cache",
        *tests,
    ]
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"TMPDIR": str(project.parent), "HYPOTHESIS_STORAGE_DIRECTORY": str(project / ".hypothesis")}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=project, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the group that was started above
        process.communicate()
        return TIMEOUT, f"after {seconds:g} s", time.monotonic() - started
    failures = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    words = (failures or output.splitlines() or [""])[0][:200]
    return SURVIVED if process.returncode == 0 else KILLED, words, time.monotonic() - started


class Runner:
    """Tries mutations in copies of the project, one for each process."""

    def __init__(self, folder: Path, num_processes: int, limit_seconds: float, root: Path = ROOT) -> None:
        self.root, self.limit_seconds = root, limit_seconds
        self.copies: SimpleQueue[Path] = SimpleQueue()
        self.baselines: dict[str, tuple[str, str, float]] = {}
        for number in range(num_processes):
            copy = folder / str(number) / "project"
            copy_project(copy, root)
            self.copies.put(copy)

    def try_one(self, mutation: Mutation) -> dict[str, Any]:
        """What became of a mutation, as a row of the report."""
        source = (self.root / mutation.path).read_text()
        tests = relevant_tests(self.root, mutation.path)
        row = asdict(mutation) | {"diff": mutation.diff(source), "tests": tests}
        if not tests:
            return row | {"outcome": NO_TESTS, "words": "", "seconds": 0.0}
        copy = self.copies.get()
        try:
            if mutation.path not in self.baselines:
                self.baselines[mutation.path] = run_tests(copy, tests, 3 * self.limit_seconds)
            before = self.baselines[mutation.path]
            if before[0] != SURVIVED:
                return row | {"outcome": BROKEN, "words": before[1], "seconds": before[2]}
            (copy / mutation.path).write_text(mutation.apply(source))
            limit = max(self.limit_seconds, 3 * before[2])
            outcome, words, seconds = run_tests(copy, tests, limit)
            return row | {"outcome": outcome, "words": words, "seconds": round(seconds, 1)}
        finally:
            (copy / mutation.path).write_text(source)
            self.copies.put(copy)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same mutation."""
    return row["path"], row["start"], row["end"], row["text"]


def run(chosen: list[Mutation], report: Path, runner: Runner, num_processes: int) -> Iterator[dict[str, Any]]:
    """Try what the report does not hold yet; yields each row when it is written."""
    report.parent.mkdir(parents=True, exist_ok=True)
    rows = read(report)
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))  # without a line that a death cut off
    done = {identity(row) for row in rows}
    todo = [mutation for mutation in chosen if identity(asdict(mutation)) not in done]
    with ThreadPoolExecutor(num_processes) as pool, report.open("a") as file:
        for row in pool.map(runner.try_one, todo):
            file.write(json.dumps(row) + "\n")
            file.flush()
            yield row


def read(report: Path) -> list[dict[str, Any]]:
    """Rows of a report; one that was cut off by a death is not there."""
    lines = report.read_text().splitlines() if report.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def summary(rows: list[dict[str, Any]]) -> str:
    """The figure, and each survivor."""
    counts = Counter(row["outcome"] for row in rows)
    judged = counts[KILLED] + counts[TIMEOUT] + counts[SURVIVED] + counts[NO_TESTS]
    noticed = counts[KILLED] + counts[TIMEOUT]
    survivors = [row for row in rows if row["outcome"] in (SURVIVED, NO_TESTS)]
    lines = [f"{row['path']}:{row['line']} {row['operator']} {row['outcome']}\n{row['diff']}" for row in survivors]
    share = f"{noticed} of {judged} noticed" + (f" ({noticed / judged:.0%})" if judged else "")
    return "\n".join([*lines, f"{share}; " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.mutations", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--paths", nargs="+", default=["yt8m_assets", "models"])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for one mutation's tests, or thrice theirs")
    parser.add_argument("--report", type=Path, default=ROOT / ".state" / "mutations.jsonl")
    options = parser.parse_args()
    os.nice(10)
    chosen = sample(options.paths, options.sample, options.seed)
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        runner = Runner(Path(folder), options.processes, options.limit)
        for row in run(chosen, options.report, runner, options.processes):
            print(f"{row['outcome']:9} {row['path']}:{row['line']} {row['operator']} {row['seconds']} s", flush=True)
    wanted = {identity(asdict(mutation)) for mutation in chosen}
    print(summary([row for row in read(options.report) if identity(row) in wanted]))


if __name__ == "__main__":
    main()
