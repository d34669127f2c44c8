"""Sends the operations of a run's journal to MLflow, in order, each once.

Whatever may have arrived before an answer was lost is looked up on the server before it is sent again: runs and model
versions by a tag that names their operation, metric points by metric and step.
"""

import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.tracking.errors import describe, is_refusal
from yt8m_assets.tracking.registry import METRIC_TAG, crown, ensure_registered
from yt8m_assets.tracking.spool import Journal

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

JOURNAL_TAG, OPERATION_TAG = "yt8m.journal", "yt8m.operation"
SPOOLED = "spooled-"
"""Prefix of the id of a run that the server does not know yet."""
MAX_PARAM, MAX_TAG = 6000, 5000
"""Characters of a parameter's and of a tag's value."""
_BATCH_METRICS, _BATCH_TAGS, _BATCH_PARAMS, _MAX_KEY = 1000, 100, 100, 250
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)


def mlflow_name(name: str) -> str:
    """A metric, parameter or tag name that MLflow accepts: `@` and the like become `_`."""
    parts = [part for part in _NOT_IN_NAMES.sub("_", name).split("/") if part.strip(".")]
    return "/".join(parts)[:_MAX_KEY] or "unnamed"


def split_finite(metrics: Mapping[str, float], step: int) -> tuple[dict[str, float], dict[str, str]]:
    """Finite metrics, and the others as tags (MLflow would store infinity as 1.8e308)."""
    values = {mlflow_name(name): float(value) for name, value in metrics.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    tags = {f"nonfinite/{name}": f"{value} at step {step}" for name, value in values.items() if name not in finite}
    return finite, tags


class Sender:
    """Works off one journal. Calls raise what MLflow raises; an operation counts as sent when its call returned."""

    def __init__(
        self, client: "MlflowClient", journal: Journal, experiment_id: str, *, uncertain: bool = False
    ) -> None:
        """`uncertain`: some of the journal may have arrived already."""
        self.client, self.journal, self.experiment_id = client, journal, experiment_id
        self.results: dict[int, str] = {}
        self.uncertain = uncertain
        self.uploading = False
        self._steps: dict[str, set[int]] = {}

    def send(self) -> None:
        """Send everything that is pending."""
        try:
            while operations := self.journal.head(_BATCH_METRICS):
                self.journal.ack(self._send_some(operations))
        except BaseException:
            self.uncertain = True
            self._steps.clear()
            raise
        finally:
            self.uploading = False

    def _send_some(self, operations: list[dict[str, Any]]) -> int:
        """Send the first operation, with those after it that fit the same batch; how many were sent."""
        first = operations[0]
        if self.journal.run_id is None and first["op"] != "open":
            return 1  # the run itself was refused, which has been said
        if first["op"] in ("metrics", "tags"):
            return self._send_batch(operations)
        try:
            handler: Callable[[dict[str, Any], int], None] = getattr(self, f"_{first['op']}")
            handler(first, self.journal.acked)
        except FileNotFoundError as error:
            logger.warning("tracking: a kept file is gone (%s); left out", error)
        except Exception as error:
            if not is_refusal(error):
                raise
            logger.warning("tracking: %s cannot be sent (%s); left out", first["op"], describe(error))
        return 1

    def _send_batch(self, operations: list[dict[str, Any]]) -> int:
        from mlflow.entities import Metric, RunTag

        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        count = 0
        fresh: dict[str, set[int]] = {}
        for operation in operations:
            if operation["op"] == "metrics":
                if len(metrics) + len(operation["values"]) > _BATCH_METRICS and metrics:
                    break
                step, time = operation["step"], operation["time"]
                for name, value in operation["values"].items():
                    if step not in self._known_steps(name) and step not in fresh.setdefault(name, set()):
                        fresh[name].add(step)
                        metrics.append(Metric(name, value, time, step))
            elif operation["op"] == "tags":
                if len(tags | operation["values"]) > _BATCH_TAGS and tags:
                    break
                tags |= operation["values"]
            else:
                break
            count += 1
        try:
            for first in range(0, max(len(metrics), 1), _BATCH_METRICS):
                run_tags = [RunTag(name, value) for name, value in tags.items()] if first == 0 else []
                self.client.log_batch(self._run_id(), metrics[first : first + _BATCH_METRICS], tags=run_tags)
        except Exception as error:
            if not is_refusal(error):
                raise
            logger.warning("tracking: MLflow refuses a batch of %d metrics (%s)", len(metrics), describe(error))
        for name, steps in fresh.items():
            self._steps[name] |= steps
        return count

    def _known_steps(self, name: str) -> set[int]:
        if name not in self._steps:
            history = self.client.get_metric_history(self._run_id(), name) if self.uncertain else []
            self._steps[name] = {point.step for point in history}
        return self._steps[name]

    def _run_id(self) -> str:
        assert self.journal.run_id is not None
        return self.journal.run_id

    def find_run(self, journal_name: str) -> str | None:
        """Id of the run that a journal opened, if it did."""
        found = self.client.search_runs(
            [self.experiment_id], filter_string=f"tags.`{JOURNAL_TAG}` = '{journal_name}'", max_results=1
        )
        return found[0].info.run_id if found else None

    def _open(self, operation: dict[str, Any], _: int) -> None:
        tags = {**operation["tags"], JOURNAL_TAG: self.journal.name}
        before = self._resumable(operation["resume_id"])
        if before is not None:
            self.uncertain = True
            attempt = str(int(before.data.tags.get("attempt", "1")) + 1)
            known = before.data.params
            same = all(known.get(name, value) == value for name, value in operation["params"].items())
            if same:
                if before.data.tags.get(JOURNAL_TAG) != self.journal.name:
                    self._log_tags(before.info.run_id, {**tags, "attempt": attempt})
                self.client.update_run(before.info.run_id, status="RUNNING")
                self._log_params(before.info.run_id, {k: v for k, v in operation["params"].items() if k not in known})
                self.journal.set_run_id(before.info.run_id)
                return
            tags |= {"attempt": attempt, "mlflow.parentRunId": before.info.run_id, "resumed_from": before.info.run_id}
        run_id = self.find_run(self.journal.name) if self.uncertain else None
        if run_id is None:
            created = self.client.create_run(
                self.experiment_id,
                start_time=operation["time"],
                run_name=operation["name"],
                tags={"attempt": "1", **tags},
            )
            run_id = created.info.run_id
        self._log_params(run_id, operation["params"])
        self.journal.set_run_id(run_id)

    def _resumable(self, resume_id: str | None) -> Any:
        """The run to continue; None (and a warning) where the server has lost it."""
        if resume_id is None:
            return None
        run_id = self.find_run(resume_id.removeprefix(SPOOLED)) if resume_id.startswith(SPOOLED) else resume_id
        try:
            run = self.client.get_run(run_id) if run_id else None
        except Exception as error:
            if not is_refusal(error):
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            logger.warning("tracking: run %s is not on the server; a new run begins", resume_id)
            return None
        return run

    def _params(self, operation: dict[str, Any], _: int) -> None:
        known = self.client.get_run(self._run_id()).data.params
        self._log_params(self._run_id(), {k: v for k, v in operation["values"].items() if k not in known})

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = [Param(name, value) for name, value in params.items()]
        for first in range(0, len(items), _BATCH_PARAMS):
            self.client.log_batch(run_id, params=items[first : first + _BATCH_PARAMS])

    def _log_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _artifact(self, operation: dict[str, Any], _: int) -> None:
        self.uploading = True
        for name, folder in zip(operation["files"], operation["folders"], strict=True):
            self.client.log_artifact(self._run_id(), str(self.journal.file(name)), folder or None)
        self.uploading = False

    def _dataset(self, operation: dict[str, Any], _: int) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": operation["source_uri"]})
        dataset = Dataset(operation["name"][:500], operation["digest"][:36], "uri", source)
        self.client.log_inputs(
            self._run_id(), [DatasetInput(dataset, [InputTag("mlflow.data.context", operation["context"])])]
        )

    def _close(self, operation: dict[str, Any], _: int) -> None:
        if operation.get("abandoned"):
            run = self.client.get_run(self._run_id())
            if run.info.status != "RUNNING" or run.data.tags.get(JOURNAL_TAG) != self.journal.name:
                return  # somebody has ended it, or goes on with it
        self.client.set_terminated(self._run_id(), status=operation["status"], end_time=operation["time"])

    def _register(self, operation: dict[str, Any], number: int) -> None:
        """Upload the model as one that MLflow can load, register the version, and let the better one be champion."""
        mark = f"{self.journal.name}:{number}"
        name, metric = operation["name"], operation["metric"]
        version = self._find_version(name, mark)
        if version is None:
            self.uploading = True
            with tempfile.TemporaryDirectory() as folder:
                model = self._servable(operation, Path(folder))
                self.client.log_artifacts(self._run_id(), str(model), "model")
            self.uploading = False
            ensure_registered(self.client, name, operation["description"])
            tags = {OPERATION_TAG: mark, METRIC_TAG: repr(metric), **operation["tags"]}
            source = f"{self.client.get_run(self._run_id()).info.artifact_uri}/model"
            version = self.client.create_model_version(
                name, source, self._run_id(), tags=tags, description=operation["description"]
            ).version
        self.results[number] = str(version)
        crown(self.client, name, str(version), metric, operation["tags"])

    def _servable(self, operation: dict[str, Any], folder: Path) -> Path:
        """The kept files as a folder; with MLflow's own description beside them where they are a model of ours."""
        files = folder / "files"
        for name, below in zip(operation["files"], operation["folders"], strict=True):
            target = files / below / Path(name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self.journal.file(name).resolve())
        if not (files / "model.json").is_file():
            return files
        from yt8m_assets.serving import save_servable

        save_servable(files, folder / "servable")
        return folder / "servable"

    def _find_version(self, name: str, mark: str) -> Any:
        versions = self.client.search_model_versions(f"run_id = '{self._run_id()}'") if self.uncertain else []
        return next((v.version for v in versions if v.name == name and v.tags.get(OPERATION_TAG) == mark), None)
