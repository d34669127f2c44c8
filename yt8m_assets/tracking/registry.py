"""Which registered version of a model is the champion: the best of those whose metrics can be compared."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from yt8m_assets.tracking.errors import is_refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
"""Alias of the registered version with the best hold-out MAP."""
METRIC_TAG = "metric"
"""Tag of a model version that holds the metric its alias is decided by."""
HOLDOUT_TAG = "parent.holdout_ratings"
"""Tag of a run and its model version that names the ratings its metric is of."""


def crown(client: "MlflowClient", name: str, version: str, metric: float, tags: Mapping[str, str]) -> None:
    """Give the alias to a version if it is better than the champion, or that one cannot be compared any more."""
    before, best = _champion(client, name, tags)
    if metric > best:
        client.set_registered_model_alias(name, CHAMPION, version)
        _yield_to_better(client, name, before, metric, tags)


def ensure_registered(client: "MlflowClient", name: str, description: str) -> None:
    """Make the registered model where it is missing."""
    try:
        client.create_registered_model(name, description=description)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise


def _champion(client: "MlflowClient", name: str, tags: Mapping[str, str]) -> tuple[int, float]:
    """Number and metric of the version that is champion now; -inf where it cannot be compared any more."""
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
        counts = _comparable(client, champion, tags)
        return int(champion.version), float(champion.tags.get(METRIC_TAG, "-inf")) if counts else -math.inf
    except Exception as error:
        if getattr(error, "error_code", "") not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return 0, -math.inf


def _comparable(client: "MlflowClient", version: Any, tags: Mapping[str, str]) -> bool:
    """Whether a version's metric still stands: its run lives, and its hold-out is that of a run with `tags`."""
    own = tags.get(HOLDOUT_TAG)
    if version.tags.get(HOLDOUT_TAG, own) != own:
        return False
    try:
        return client.get_run(version.run_id).info.lifecycle_stage == "active"
    except Exception as error:
        if not is_refusal(error):
            raise
        return False


def _yield_to_better(client: "MlflowClient", name: str, before: int, metric: float, tags: Mapping[str, str]) -> None:
    """Undo what two processes do that compare at once and then both move the alias: the better one keeps it.

    Looks only at versions after the champion that was read: an older one may have been passed over by a person.
    """
    versions = client.search_model_versions(f"name = '{name}'")
    rivals = [(float(v.tags[METRIC_TAG]), int(v.version), v) for v in versions if METRIC_TAG in v.tags]
    rivals = [rival for rival in rivals if rival[1] > before and rival[0] > metric]
    for _, number, version in sorted(rivals, key=lambda rival: rival[:2], reverse=True):
        if _comparable(client, version, tags):
            client.set_registered_model_alias(name, CHAMPION, str(number))
            return
