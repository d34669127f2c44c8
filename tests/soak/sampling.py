"""What servers and their state take at one moment, and whether that grows from run to run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

SERVERS = {
    "mlflow": ("-m", "mlflow"),
    "uvicorn": ("uvicorn", "mlflow.server"),
    "code": ("code-server",),
    "grpc": ("api", "grpc"),
    "webserver": ("orchestration.guard",),
    "daemon": ("daemon",),
}
"""What a server is called here -> words of its command line; processes of runs come and go, and count for none."""
FOLDERS = ("artifacts", "cache", "mlflow", "dagster", "logs")
DATABASES = {"mlflow.db": "mlflow/mlflow.db", "runs.db": "dagster/history/runs.db"}
WARM_UP = 15
"""Runs in which a server loads modules and fills caches."""
Sample = dict[str, float]


def sample_processes(parent: int) -> Sample:
    """MB of memory, open files and threads of the command and of each of its servers."""
    found: Sample = {}
    own = psutil.Process(parent)
    for process in (own, *own.children(recursive=True)):
        try:
            words = process.cmdline()
            name = "ui" if process.pid == parent else _server(words)
            if name is None:
                continue
            with process.oneshot():
                memory = process.memory_info().rss / 1e6
                values = {"rss MB": memory, "handles": process.num_fds(), "threads": process.num_threads()}
        except psutil.NoSuchProcess:
            continue
        for kind, value in values.items():
            found[f"{name} {kind}"] = found.get(f"{name} {kind}", 0) + value
    return found


def _server(words: Sequence[str]) -> str | None:
    """What a process is called here; None where it belongs to a run."""
    if any("multiprocessing" in word for word in words):  # a run's own process, or what it starts
        return None
    for name, wanted in SERVERS.items():
        if all(any(word in each for each in words) for word in wanted):
            return name
    return "other"


def sample_state(state: Path) -> Sample:
    """MB and files of each folder of a state, and of the system's folder for temporary files."""
    found: Sample = {}
    for name in FOLDERS:
        sizes = [size for _, size in files(state / name)]
        found[f"{name} MB"], found[f"{name} files"] = sum(sizes) / 1e6, len(sizes)
    return found


def files(folder: Path) -> Iterable[tuple[str, int]]:
    """Path and bytes of each file below a folder; what goes while one looks is left out."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            try:
                yield path, os.stat(path).st_size
            except FileNotFoundError:
                continue


@dataclass(frozen=True)
class Trend:
    """How a figure goes with the runs."""

    first: float
    """At the first sample that counts."""
    last: float
    """At the last one."""
    per_100_runs: float
    """Slope of the straight line through the samples, each session of the servers with its own start."""
    spread: float
    """Half the width of the slope's 95 % interval."""

    @property
    def verdict(self) -> str:
        """`grows` where the slope is above nought beyond doubt and 100 runs add more than a hundredth, else `flat`."""
        doubtless = self.per_100_runs > self.spread
        return "grows" if doubtless and self.per_100_runs > 0.01 * abs(self.last) else "flat"


def trends(samples: Sequence[Mapping[str, float]]) -> dict[str, Trend]:
    """Name -> trend of each figure; `samples` hold `runs` (done so far) and `session`.

    The first WARM_UP runs of a session do not count.
    """
    counted: list[Mapping[str, float]] = []
    for session in sorted({each["session"] for each in samples}):
        own = [each for each in samples if each["session"] == session]
        counted += [each for each in own if each["runs"] >= own[0]["runs"] + WARM_UP]
    names = dict.fromkeys(name for each in counted for name in each if name not in ("runs", "session", "at"))
    return {name: found for name in names if (found := _trend(counted, name))}


def _trend(samples: Sequence[Mapping[str, float]], name: str) -> Trend | None:
    having = [each for each in samples if name in each]
    x, y = (np.array([each[key] for each in having], float) for key in ("runs", name))
    sessions = np.array([each["session"] for each in having])
    for session in set(sessions.tolist()):
        own = sessions == session
        x[own] -= x[own].mean()
        y[own] -= y[own].mean()
    freedom = len(having) - len(set(sessions.tolist())) - 1
    if freedom < 1 or not x.any():
        return None
    slope = float((x * y).sum() / (x * x).sum())
    error = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x * x).sum()))
    return Trend(having[0][name], having[-1][name], 100 * slope, 200 * error)
