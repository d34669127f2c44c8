"""What the core asks of experiment tracking: a small protocol, with a null and an in-memory implementation.

The MLflow implementation is `MlflowTracking` below; it imports MLflow only when a run starts.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class TrackedRun(Protocol):
    """One open run. No call raises because of the tracking server, and none blocks longer than the budget."""

    run_id: str | None
    url: str | None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def log_artifact(self, path: Path, folder: str = "") -> None: ...

    def log_dict(self, value: Mapping[str, Any], name: str) -> None: ...

    def register_model(self, name: str, folder: Path, *, metric: float, description: str = "") -> str | None: ...


class Tracking(Protocol):
    """Opens runs. `resume_id` continues a run after an interruption; `kind` and `model` become tags."""

    def run(
        self,
        name: str,
        *,
        kind: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        resume_id: str | None = None,
    ) -> Any: ...
