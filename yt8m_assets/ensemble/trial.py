"""Trials of a weight search and their log: a JSON line each, in the format of the original's search log."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from yt8m_assets.errors import DataError

_SYNC_SECONDS = 1.0
_TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation."""

    number: int
    """Position in the search, from 0."""
    target: float
    """MAP@K of the fusion."""
    params: Mapping[str, float]
    """`w0` and a weight per ranking (in the original's log: w1, w2, ...)."""
    phase: str = ""
    """What proposed it: preset, random, model or refinement; empty in the original's log."""
    time: str = ""
    """UTC, `YYYY-MM-DD HH:MM:SS`."""

    @property
    def w0(self) -> float:
        """The place constant."""
        return self.params["w0"]

    @property
    def weights(self) -> dict[str, float]:
        """The weights without w0."""
        return {key: value for key, value in self.params.items() if key != "w0"}


def read_trials(path: Path) -> list[Trial]:
    """The trials of a log, ours or the original's; a last line without its end (a killed writer's) is left out.

    Raises DataError naming file and line for anything else that is not a trial.
    """
    trials = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True)):
        if not line.endswith("\n") and not _is_trial(line):
            break
        if not _is_trial(line):
            raise DataError(f"{path}, line {number + 1}: {line[:60]!r} is not a trial (target, params with w0)")
        row = json.loads(line)
        trials.append(
            Trial(
                number=number,
                target=float(row["target"]),
                params={key: float(value) for key, value in row["params"].items()},
                phase=str(row.get("phase", "")),
                time=str(row.get("datetime", {}).get("datetime", "")),
            )
        )
    return trials


def _is_trial(line: str) -> bool:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError:
        return False
    if not isinstance(row, dict) or not isinstance(row.get("params"), dict) or "w0" not in row["params"]:
        return False
    numbers = [row.get("target"), *row["params"].values()]
    return all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)


class TrialLog:
    """Appends trials to a file, each handed to the system before the search goes on; `path` None keeps no file.

    A killed process loses nothing. The disk is made to have them once a second: a trial takes less than a sync.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.past = read_trials(path) if path is not None and path.exists() else []
        self._began = datetime.now(UTC)
        self._last = self._began
        self._synced = time.monotonic()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._drop_torn_line(path)

    def _drop_torn_line(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        whole = b"".join(line.removesuffix(b"\n") + b"\n" for line in lines[: len(self.past)])
        if whole != path.read_bytes():
            path.write_bytes(whole)

    def append(self, trial: Trial) -> Trial:
        """Write a trial and return it with its time."""
        now = datetime.now(UTC)
        stamp: dict[str, Any] = {
            "datetime": now.strftime(_TIME),
            "elapsed": (now - self._began).total_seconds(),
            "delta": (now - self._last).total_seconds(),
        }
        self._last = now
        row = {"target": trial.target, "params": dict(trial.params), "datetime": stamp, "phase": trial.phase}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                file.flush()
                if time.monotonic() - self._synced > _SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        return Trial(
            number=trial.number, target=trial.target, params=trial.params, phase=trial.phase, time=stamp["datetime"]
        )
