"""What people meet first in MLflow: the experiment, its description, and the columns of its table of runs.

MLflow keeps the columns that a person chooses in the browser. A view that is shared by a link lies in a tag of the
experiment, as JSON: so the links of this project open the runs with the columns that matter.
"""

import json
from collections.abc import Mapping

EXPERIMENT = "yt8m"
"""Name of the experiment that holds every run, unless MLFLOW_EXPERIMENT_NAME says another."""
NOTE_TAG = "mlflow.note.content"
"""The description on the page of a run or an experiment."""
_NOTE = (
    "YouTube-8M segment classification. All trainings log the same metric names, such as "
    "`holdout/map_at_100000`; prediction, ensemble and leaderboard runs follow them. Tick runs and press Compare."
)
_VIEW = "results"
_WIDTHS = {
    "metrics.`holdout/map_at_100000`": 200,
    "metrics.`holdout/best_map_at_100000`": 235,
    "metrics.`holdout/best_gap_at_20`": 200,
    "metrics.`ensemble/map_at_100000`": 205,
    "tags.`kind`": 110,
    "tags.`model`": 170,
    "tags.`recipe`": 110,
}
VIEW_TAG = f"mlflow.sharedViewState.{_VIEW}"
EXPERIMENT_TAGS: Mapping[str, str] = {
    NOTE_TAG: _NOTE,
    VIEW_TAG: json.dumps({"selectedColumns": [*_WIDTHS], "columnOrder": [*_WIDTHS], "columnWidths": _WIDTHS}),
}
"""Tags of the experiment: description and columns."""


def runs_page(ui_url: str, experiment_id: str, tags: Mapping[str, str] | None = None) -> str:
    """Address of an experiment's runs, with our columns where its `tags` hold them.

    Without the workflow MLflow opens its page for language models.
    """
    view = f"&viewStateShareKey={_VIEW}" if VIEW_TAG in (tags or {}) else ""
    return f"{ui_url.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}"
