"""Random single mutations of the sources against their tests: what of the behaviour no test would miss.

    python -m tests.mutations --sample 300 --seed 1 --paths yt8m_assets models

Each mutation is made in a scratch copy of the project. A line of JSON is written as each is done; the same command goes
on where it was stopped.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
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
    """The files of a checkout that git knows or would take, in a repository with a commit, which reports name."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in names:
        if name and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((root / name).read_bytes())
    author = ["-c", "user.name=mutations", "-c", "user.email=mutations@localhost"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "Copy"]):
        subprocess.run(["git", *words], cwd=target, check=True)


@dataclass(frozen=True)
class Answer:
    """What tests said."""

    code: int | None
    """Of pytest; None: ended after all its time."""
    seconds: float
    """They took."""
    failures: dict[str, str]
    """Words of each test, or file, that failed."""


class Project:
    """A copy of the project, in which tests run (forked.py)."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.path = folder / "project"
        copy_project(self.path, root)
        command = [sys.executable, "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash", self.path]
        subprocess.run(command, check=True)
        environment = {**os.environ, "PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment |= {"HYPOTHESIS_STORAGE_DIRECTORY": str(self.path / ".hypothesis")}
        self.server = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("forked.py"), self.path], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def close(self) -> None:
        """End the process that runs the tests."""
        self.server.communicate()  # which closes its input: it ends

    def write(self, path: str, source: str) -> None:
        """Change a file, and forget what was compiled of it."""
        place = self.path / path
        place.write_text(source)
        for old in (place.parent / "__pycache__").glob(f"{place.stem}.*.pyc"):
            old.unlink()

    def run(self, tests: list[str], limit_seconds: float, *options: str) -> Answer:
        """Run tests; one that takes longer than the limit fails, and 20 times the limit is enough for all."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        arguments = ["-q", "--tb=line", f"--timeout={limit_seconds:g}", *options]
        arguments += ["-o", f"cache_dir={self.path}/.pytest_cache", *tests]
        request = {"arguments": arguments, "seconds": 20 * limit_seconds}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return Answer(**json.loads(self.server.stdout.readline()))


class Runner:
    """Tries mutations in copies of the project, one for each process."""

    def __init__(self, folder: Path, num_processes: int, limit_seconds: float, root: Path = ROOT) -> None:
        self.root, self.limit_seconds = root, limit_seconds
        self.all = [Project(folder / str(number), root) for number in range(num_processes)]
        self.idle: SimpleQueue[Project] = SimpleQueue()
        for project in self.all:
            self.idle.put(project)

    def close(self) -> None:
        """End its processes."""
        for project in self.all:
            project.close()

    def try_one(self, mutation: Mutation) -> dict[str, Any]:
        """What became of a mutation, as a row of the report."""
        source = (self.root / mutation.path).read_text()
        tests = relevant_tests(self.root, mutation.path)
        row = asdict(mutation) | {"diff": mutation.diff(source), "tests": tests}
        if not tests:
            return row | {"outcome": NO_TESTS, "test": "", "words": "", "seconds": 0.0}
        project = self.idle.get()
        try:
            project.write(mutation.path, mutation.apply(source))
            answer = project.run(tests, self.limit_seconds, "-x")
            test, words = next(iter(answer.failures.items()), ("", ""))
            late = answer.code is None or "pytest-timeout" in words
            outcome = SURVIVED if answer.code == 0 else TIMEOUT if late else KILLED
            words = words.partition("\n")[0][:200]
            return row | {"outcome": outcome, "test": test, "words": words, "seconds": answer.seconds}
        finally:
            project.write(mutation.path, source)
            self.idle.put(project)

    def verify(self, report: Path) -> None:
        """Take back, in the report, what was noticed by tests that fail unmutated, too: run each of them once more."""
        rows = read(report)
        tests = sorted({row["test"] for row in rows if row["outcome"] in (KILLED, TIMEOUT) and row.get("test")})
        broken: dict[str, str] = {}
        for kind, options in ((True, ()), (False, ("--collect-only",))):  # of a file, that it can be imported
            chosen = [test for test in tests if ("::" in test) is kind]
            if chosen:
                answer = self.all[0].run(chosen, 3 * self.limit_seconds, *options)
                if answer.code not in (0, 1, 2):
                    raise RuntimeError(f"pytest ended with {answer.code} over {len(chosen)} tests that must pass")
                broken |= answer.failures
        for row in rows:
            if row.get("test") in broken:
                row |= {"outcome": BROKEN, "words": broken[row["test"]].partition("\n")[0][:200]}
        write(report, rows)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same mutation."""
    return row["path"], row["start"], row["end"], row["text"]


def run(chosen: list[Mutation], report: Path, runner: Runner, num_processes: int) -> Iterator[dict[str, Any]]:
    """Try what the report does not hold yet; yields each row when it is written."""
    report.parent.mkdir(parents=True, exist_ok=True)
    rows = read(report)
    write(report, rows)  # without a line that a death cut off
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


def write(report: Path, rows: list[dict[str, Any]]) -> None:
    """A report anew."""
    report.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that one test may take")
    parser.add_argument("--report", type=Path, default=ROOT / ".state" / "mutations.jsonl")
    options = parser.parse_args()
    os.nice(10)
    chosen = sample(options.paths, options.sample, options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="mutations-") as folder,
        closing(Runner(Path(folder), options.processes, options.limit)) as runner,
    ):
        for row in run(chosen, options.report, runner, options.processes):
            print(f"{row['outcome']:9} {row['path']}:{row['line']} {row['operator']} {row['seconds']} s", flush=True)
        runner.verify(options.report)
    wanted = {identity(asdict(mutation)) for mutation in chosen}
    print(summary([row for row in read(options.report) if identity(row) in wanted]))


if __name__ == "__main__":
    main()
