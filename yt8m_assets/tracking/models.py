"""The kept checkpoints of a run as logged models of MLflow, whose page ranks them by their scores on the hold-out."""

import json
from typing import TYPE_CHECKING, Any

from yt8m_assets.tracking.record import Record, now_milliseconds
from yt8m_assets.tracking.server import Server

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

CHECKPOINT_TAG, PUBLISHED_TAG = "checkpoint", "published"
"""Tags of a logged model: which of its run's checkpoints it is, and on the one whose weights the artifact holds."""
_TAGS = ("model", "recipe", "asset", "partition", "fingerprint")
"""Of the run's: those that it has from its beginning, so that a model made later has no others."""
VERSIONS_TAG = "mlflow.modelVersions"
"""Where MLflow's pages look for the registered versions of a logged model."""


class LoggedModels:
    """A run's logged models on a server: what is there is looked up, what is missing is made."""

    def __init__(self, server: Server, run_id: str, record: Record) -> None:
        self._client, self._run_id, self._record = server.client(), run_id, record
        self._experiment_id = server.open_experiment()
        found: list[LoggedModel] = []
        token: str | None = None
        while token is None or token:
            page = self._client.search_logged_models(
                [self._experiment_id], f"source_run_id = '{run_id}'", page_token=token
            )
            found, token = [*found, *page], page.token or ""
        self._models = {model.tags.get(CHECKPOINT_TAG, ""): model for model in found}
        self._done = {name for name, model in self._models.items() if str(model.status) == "READY"}
        known, outputs = {model.model_id for model in found}, self._client.get_run(run_id).outputs
        self._deleted = {made.step for made in (outputs.model_outputs if outputs else ()) if made.model_id not in known}

    def push(self, entry: dict[str, Any]) -> int:
        """Make a checkpoint's logged model with its scores unless it is there; the number of changes.

        A score `holdout/...` is tied to the run's data set of context holdout, `test/...` to that of context test.
        One that a person has deleted stays deleted. Its scores are points of the run, too: a point that the run has
        already is the same one, by its time.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        name, step, client = entry["name"], entry["step"], self._client
        if name in self._done or (name not in self._models and step in self._deleted):
            return 0
        record = self._record
        if name not in self._models:
            tags = {key: record.tags[key] for key in _TAGS if key in record.tags}
            made = client.create_logged_model(
                self._experiment_id,
                "-".join([record.tags["model"], record.tags.get("kind", "run"), name])
                if "model" in record.tags
                else f"{record.name}-{name}",
                self._run_id,
                {**tags, CHECKPOINT_TAG: name},
                {"step": str(step)},
                record.tags.get("kind"),
            )
            client.log_outputs(self._run_id, [LoggedModelOutput(made.model_id, step)])
            self._models[name] = made
        model_id = self._models[name].model_id
        times = {(metric, at_step): at for metric, at_step, _, at in list(record.points)}
        measured: dict[str, Any] = {
            each["context"]: {"dataset_name": each["name"][:500], "dataset_digest": each["digest"][:36]}
            for each in reversed(record.datasets)
        }
        metrics = [
            Metric(
                metric,
                value,
                times.get((metric, step), now_milliseconds()),
                step,
                model_id=model_id,
                run_id=self._run_id,
                **measured.get(metric.partition("/")[0], {}),
            )
            for metric, value in entry["metrics"].items()
        ]
        client.log_batch(self._run_id, metrics)
        client.finalize_logged_model(model_id, "READY")
        self._done.add(name)
        return 1

    def published(self) -> "LoggedModel | None":
        """The logged model whose weights the artifact holds; None where there is none."""
        return self._models.get(self._record.published or "")

    def mark_published(self) -> int:
        """Tag that model; the number of changes."""
        model = self.published()
        if model is None or PUBLISHED_TAG in model.tags:
            return 0
        self._client.set_logged_model_tags(model.model_id, {PUBLISHED_TAG: "true"})
        model.tags[PUBLISHED_TAG] = "true"
        return 1


def link_version(client: Any, model: "LoggedModel", name: str, version: str) -> None:
    """Show a registered version on its logged model's page."""
    versions = json.loads(client.get_logged_model(model.model_id).tags.get(VERSIONS_TAG, "[]"))
    entry = {"name": name, "version": int(version)}
    if entry not in versions:
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps([*versions, entry])})
