"""Versions in the registry, and which of them is the champion: the best of those whose metrics can be compared."""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yt8m_assets.tracking.errors import is_refusal
from yt8m_assets.tracking.models import link_version
from yt8m_assets.tracking.record import Record
from yt8m_assets.tracking.server import Server

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CHAMPION = "champion"
"""Alias of the registered version with the best hold-out MAP."""
METRIC_TAG = "metric"
"""Tag of a model version that holds the metric its alias is decided by."""
MODEL_TAG = "logged_model"
"""Tag of a model version that names the logged model whose files it is."""
HOLDOUT_TAG = "parent.holdout_ratings"
"""Tag of a run and its model version that names the ratings its metric is of."""
COMPARED_TAG = "compared"
"""Tag of a version that was compared with the champion: a later choice by a person stands."""


def register(
    server: Server, run_id: str, record: Record, model_path: Path, logged: "LoggedModel | None" = None
) -> tuple[str, bool]:
    """Number of the run's version of its model, and whether it had to be made or compared with the champion.

    It is uploaded as a model that MLflow can load: as the files of the logged model, of the run where there is none.
    The better one is champion.
    """
    assert record.model is not None
    client = server.client()
    name, metric, text = record.model["name"], record.model["metric"], record.model["description"]
    versions = [v for v in client.search_model_versions(f"run_id = '{run_id}'") if v.name == name]
    if versions and COMPARED_TAG in versions[0].tags:
        return str(versions[0].version), False
    tags = {key: value for key, value in record.tags.items() if not key.startswith("mlflow.")}
    if versions:
        version = versions[0]
    else:
        with tempfile.TemporaryDirectory() as folder:
            ours = (model_path / "model.json").is_file()
            path = server.servable(model_path, Path(folder, "servable")) if ours and server.servable else model_path
            if logged is None:
                client.log_artifacts(run_id, str(path), "model")
            else:
                client.log_model_artifacts(logged.model_id, str(path))
        _ensure_registered(client, name, text)
        # not models:/ID, which MLflow looks up on the server of its process, and not on this client's
        source = logged.artifact_location if logged else f"{client.get_run(run_id).info.artifact_uri}/model"
        tags |= {METRIC_TAG: repr(metric), **({MODEL_TAG: logged.model_id} if logged else {})}
        given: Any = {"model_id": logged.model_id} if logged else {}
        version = client.create_model_version(
            name, source, run_id, tags, description=text, await_creation_for=0, **given
        )
    if logged is not None and version.tags.get(MODEL_TAG, logged.model_id) == logged.model_id:
        link_version(client, logged, name, str(version.version))
    _crown(client, name, str(version.version), metric, record)
    client.set_model_version_tag(name, str(version.version), COMPARED_TAG, "true")
    return str(version.version), True


def _ensure_registered(client: "MlflowClient", name: str, description: str) -> None:
    try:
        client.create_registered_model(name, description=description)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise


def _crown(client: "MlflowClient", name: str, version: str, metric: float, record: Record) -> None:
    """Give the alias to a version if it is better than the champion, or that one cannot be compared any more."""
    before, best = _champion(client, name, record)
    if metric > best:
        client.set_registered_model_alias(name, CHAMPION, version)
        _yield_to_better(client, name, before, metric, record)


def _champion(client: "MlflowClient", name: str, record: Record) -> tuple[int, float]:
    """Number of the version that is champion now, and the metric to beat.

    That is -inf where its run is deleted or it was scored on an older hold-out, inf on a newer one.
    """
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except Exception as error:
        if getattr(error, "error_code", "") not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return 0, -math.inf
    started = _start_of_living_run(client, champion)
    if started is None:
        return int(champion.version), -math.inf
    if _same_hold_out(champion, record):
        return int(champion.version), _metric_of(champion)
    return int(champion.version), math.inf if started > record.started else -math.inf


def _metric_of(version: Any) -> float:
    """What a version is decided by; -inf where its tag holds no number."""
    try:
        metric = float(version.tags.get(METRIC_TAG, "-inf"))
    except ValueError:
        return -math.inf
    return -math.inf if math.isnan(metric) else metric


def _same_hold_out(version: Any, record: Record) -> bool:
    own = record.tags.get(HOLDOUT_TAG)
    return bool(version.tags.get(HOLDOUT_TAG, own) == own)


def _start_of_living_run(client: "MlflowClient", version: Any) -> int | None:
    """When a version's run began; None where that run is deleted."""
    try:
        info = client.get_run(version.run_id).info
    except Exception as error:
        if not is_refusal(error):
            raise
        return None
    return info.start_time if info.lifecycle_stage == "active" else None


def _yield_to_better(client: "MlflowClient", name: str, before: int, metric: float, record: Record) -> None:
    """Undo what two processes do that compare at once and then both move the alias: the better one keeps it.

    Looks only at versions after the champion that was read: an older one may have been passed over by a person.
    """
    versions = client.search_model_versions(f"name = '{name}'")
    rivals = [(_metric_of(v), int(v.version), v) for v in versions]
    rivals = [rival for rival in rivals if rival[1] > before and rival[0] > metric]
    for _, number, version in sorted(rivals, key=lambda rival: rival[:2], reverse=True):
        if _same_hold_out(version, record) and _start_of_living_run(client, version) is not None:
            client.set_registered_model_alias(name, CHAMPION, str(number))
            return
