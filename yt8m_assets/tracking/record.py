"""All that one run says, as JSON values: a checkpoint and an artifact hold it, and any MLflow server is filled from it.

An artifact keeps the record of the run that made it as `report/run.json`, a checkpoint under "run" of its state.
"""

import json
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yt8m_assets.tracking.system import code_tags
from yt8m_assets.tracking.view import NOTE_TAG

RECORD_FILE = "report/run.json"
"""Where an artifact keeps the record of its run; it does not enter the artifact's digest."""
PARENT_TAG = "parent_token"
"""Tag of a run that is one of several of a larger run: that one's token, by which any server finds it."""
MAX_PARAM, MAX_TAG = 6000, 5000
"""Characters of a parameter's and of a tag's value."""
_MAX_KEY = 250
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)


def now_milliseconds() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def mlflow_name(name: str) -> str:
    """A metric, parameter or tag name that MLflow accepts: `@` and the like become `_`."""
    parts = [part for part in _NOT_IN_NAMES.sub("_", name).split("/") if part.strip(".")]
    return "/".join(parts)[:_MAX_KEY] or "unnamed"


@dataclass
class Record:
    """One run; whatever server it is shown on, it is known there by its token."""

    token: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    started: int = field(default_factory=now_milliseconds)
    ended: int | None = None
    """When all was done; None while it is not, or if it never came to that."""
    attempt: int = 1
    """How many processes have worked on it."""
    parent: str | None = None
    """Token of the run that it goes on from, where that could not be continued."""
    points: list[tuple[str, int, float, int]] = field(default_factory=list)
    """Metric, step, value and time of each point, in order of arrival."""
    datasets: list[dict[str, str]] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    """Files of the artifact, and the folder of the run that each belongs in."""
    dicts: dict[str, Any] = field(default_factory=dict)
    """JSON files by name."""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    """Weights that were kept: name, step and scores on the hold-out of each."""
    published: str | None = None
    """Name of the checkpoint whose weights the artifact holds."""
    model: dict[str, Any] | None = None
    """Name, metric and description of the registered model whose version the artifact is."""

    def fork(self) -> None:
        """Become a run of its own that goes on from the one it was."""
        self.parent, self.token, self.attempt = self.token, new_token(), self.attempt + 1

    def to_json(self) -> dict[str, Any]:
        """A copy of this moment, as JSON values."""
        return {name: value.copy() if hasattr(value, "copy") else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """The record of `to_json`. Raises TypeError for another's."""
        points = [(str(name), int(step), float(value), int(at)) for name, step, value, at in values["points"]]
        files = [(str(name), str(folder)) for name, folder in values["files"]]
        return cls(**{**values, "points": points, "files": files})

    def write(self, folder: Path) -> None:
        """Write it into an artifact's folder."""
        path = folder / RECORD_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=None, sort_keys=True, allow_nan=False) + "\n")


def new_token() -> str:
    """A token that no run has."""
    return secrets.token_hex(16)


def open_record(
    name: str,
    kind: str,
    model: str | None,
    params: Mapping[str, Any] | None,
    tags: Mapping[str, str] | None,
    resume: Mapping[str, Any] | None,
) -> Record:
    """A new run's record, or the earlier one that is continued: with other parameters than it had, as a child of it."""
    given = tags or {}
    note = f"{name}, recipe {given['recipe']}" if "recipe" in given else name
    known = {"model": model, NOTE_TAG: note} if model else {}
    texts = {"kind": kind, **known, **code_tags(), **given}
    record = Record(new_token(), name, tag_texts(texts), param_texts(params or {}))
    if resume is None:
        return record
    before = Record.from_json(resume)
    if any(before.params.get(name, value) != value for name, value in record.params.items()):
        return Record(**{**vars(record), "parent": before.token, "attempt": before.attempt + 1})
    before.params = {**record.params, **before.params}
    before.tags |= record.tags
    before.attempt += 1
    return before


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them."""
    return {mlflow_name(name): str(value)[:MAX_TAG] for name, value in tags.items()}


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow takes them."""
    return {mlflow_name(name): str(value)[:MAX_PARAM] for name, value in params.items()}


def split_finite(metrics: Mapping[str, float], step: int) -> tuple[dict[str, float], dict[str, str]]:
    """Finite metrics, and the others as tags (MLflow would store infinity as 1.8e308)."""
    values = {mlflow_name(name): float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    tags = {f"nonfinite/{name}": f"{value} at step {step}" for name, value in values.items() if name not in finite}
    return finite, tags
