"""MLflow's part of `yt8m ui`: its server over a database, and the address at which it shows the runs."""

import base64
import json
import sqlite3
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orchestration.settings import Settings, is_database
from yt8m_assets.tracking import public_uri
from yt8m_assets.tracking.view import EXPERIMENT_TAGS, runs_page

HOST = "127.0.0.1"
"""Neither server knows users: never another address. SECURITY.md says how to publish them behind a proxy."""


def mlflow_command(port: int) -> list[str]:
    """The tracking server; its stores are in its environment, where other users of the machine cannot read them."""
    return [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]


def mlflow_stores(settings: Settings) -> dict[str, str]:
    """The tracking server's database, and where its experiments keep files."""
    root = str(settings.artifact_location)
    return {"MLFLOW_BACKEND_STORE_URI": settings.tracking_uri, "MLFLOW_DEFAULT_ARTIFACT_ROOT": root}


def count_runs(database: Path) -> None:
    """Let SQLite count what the tables hold, where runs have doubled since. Raises what sqlite3 raises.

    Without, it takes all tables for small: MLflow's table of 10,000 runs, ordered by a metric, took 11 s instead of
    0.2. The counts are made anew, not updated, which a process that has the database open would not notice.
    """
    if not database.is_file():
        return
    with closing(sqlite3.connect(database, timeout=1)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "runs" not in tables:
            return
        (now,) = connection.execute("SELECT count(*) FROM runs").fetchone()
        counted = "SELECT max(CAST(stat AS INTEGER)) FROM sqlite_stat1 WHERE tbl = 'runs'"
        before = connection.execute(counted).fetchone()[0] if "sqlite_stat1" in tables else None
        if now > 2 * (before or 0):
            connection.execute("BEGIN IMMEDIATE")
            if "sqlite_stat1" in tables:
                connection.execute("DROP TABLE sqlite_stat1")
            connection.execute("ANALYZE")


def mlflow_page(tracking_url: str, settings: Settings) -> str:
    """Where MLflow shows the runs; its front page where it does not answer, or has no experiment and gets none."""
    if not tracking_url.startswith("http"):
        return settings.mlflow_ui_url or "where YT8M_MLFLOW_UI_URL says, which is not set"
    base = settings.mlflow_ui_url if settings.tracking_uri.startswith("http") else tracking_url
    with suppress(OSError, ValueError, KeyError):
        found = ask_mlflow(tracking_url, f"experiments/get-by-name?experiment_name={quote(settings.experiment)}")
        return runs_page(base, *_with_our_tags(tracking_url, found["experiment"], settings))
    with suppress(OSError, ValueError, KeyError):
        if is_database(settings.tracking_uri):
            tags = [{"key": key, "value": value} for key, value in EXPERIMENT_TAGS.items()]
            values = {"name": settings.experiment, "artifact_location": settings.artifact_location, "tags": tags}
            made = ask_mlflow(tracking_url, "experiments/create", values)
            return runs_page(base, made["experiment_id"], EXPERIMENT_TAGS)
    return base


def _with_our_tags(tracking_url: str, experiment: Mapping[str, Any], settings: Settings) -> tuple[str, dict[str, str]]:
    """Id and tags of an experiment; one in a database of ours that was made without our columns gets them."""
    tags = {tag["key"]: tag["value"] for tag in experiment.get("tags", ())}
    for key, value in EXPERIMENT_TAGS.items():
        if key not in tags and is_database(settings.tracking_uri):
            values = {"experiment_id": experiment["experiment_id"], "key": key, "value": value}
            ask_mlflow(tracking_url, "experiments/set-experiment-tag", values)
            tags[key] = value
    return experiment["experiment_id"], tags


def ask_mlflow(tracking_url: str, path: str, values: Mapping[str, Any] | None = None) -> Any:
    """An answer of MLflow's REST interface, asked with the credentials of the URL."""
    parts = urlsplit(tracking_url)
    headers = {"Content-Type": "application/json"}
    if parts.username:
        secret = f"{parts.username}:{parts.password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
    body = None if values is None else json.dumps(values).encode()
    address = f"{public_uri(tracking_url).rstrip('/')}/api/2.0/mlflow/{path}"
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=5) as answer:
        return json.load(answer)
