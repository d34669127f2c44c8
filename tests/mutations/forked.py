"""A process that has imported the heavy libraries, and nothing of the project, and forks for each run of tests.

    python -P tests/mutations/forked.py PROJECT < requests > answers

Importing them takes longer than most killers run. A request and its answer are one line of JSON each: `arguments` of
pytest and `seconds`; `code` (null: killed after the seconds), `failures` (words of each failing test or file) and the
seconds it took.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "mlflow", "mlflow.tracking", "dagster", "matplotlib.pyplot", "pandas", "fsspec", "pytest")
QUICK_SECONDS = 1.5


class Notes:
    """A plugin: quick tests first, as known from earlier runs; notes how long each took and which failed."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.known, self.seconds = seconds, dict[str, float]()
        self.failures: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Files stay together, for what their tests share."""
        items.sort(key=lambda item: self.known.get(item.nodeid, 0.0) > QUICK_SECONDS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A part of a test has ended."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: Any) -> None:
        """A file was imported, or failed to be."""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failures.setdefault(report.nodeid, str(crash.message if crash else report.longrepr))


def in_child(arguments: list[str], known: dict[str, float], answer: Path) -> int:
    """Run pytest here, silently; returns its code."""
    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    import pytest

    notes = Notes(known)
    foreign = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # anyio, by mlflow
    code = int(pytest.main([*foreign, *arguments], plugins=[notes]))
    answer.write_text(json.dumps({"failures": notes.failures, "tests": notes.seconds}))
    return code


def main() -> None:
    """Answer requests until there are none."""
    project = Path(sys.argv[1])
    os.chdir(project)
    sys.path.insert(0, str(project))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    answer, known = project.parent / "answer.json", dict[str, float]()
    for line in sys.stdin:
        request = json.loads(line)
        answer.unlink(missing_ok=True)
        started = time.monotonic()
        pid = os.fork()
        if not pid:
            code = 70
            try:
                code = in_child(request["arguments"], known, answer)
            finally:
                os._exit(code)
        code = None
        while code is None and time.monotonic() < started + request["seconds"]:
            done, status = os.waitpid(pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # the group the child leads: itself, or what its tests left behind
        if code is None:
            os.waitpid(pid, 0)
        told = {"failures": {}, "tests": {}} | (json.loads(answer.read_text()) if answer.exists() else {})
        known.update(told.pop("tests"))
        sys.stdout.write(json.dumps({"code": code, "seconds": round(time.monotonic() - started, 1)} | told) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
