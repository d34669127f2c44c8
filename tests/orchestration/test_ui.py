"""What `yt8m ui` does between its announcement and its end; test_processes.py has it whole."""

import argparse
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestration import ui
from orchestration.ui import serve
from orchestration.ui_mlflow import count_runs
from tests.orchestration.conftest import ENVIRONMENT, RECIPE
from tests.ports import free_port
from yt8m_assets.errors import StorageError


class Reader:
    """A standard output whose reader presses Ctrl-C as soon as there is something to read."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> None:
        self.said += text

    def flush(self) -> None:
        raise KeyboardInterrupt


def test_a_signal_right_after_the_announcement_ends_it_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = Reader()
    monkeypatch.setattr(sys, "stdout", reader)
    assert serve([], tmp_path, lambda: None, "Dagster  here\n") == 0
    assert reader.said == "Dagster  here\n"


class Ended:
    """A server that has ended by itself."""

    def poll(self) -> int:
        return 1

    def wait(self, seconds: float) -> int:
        return 1


@pytest.fixture
def own_signals() -> Iterator[None]:
    """What ends the process is afterwards what it was."""
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for sign, handler in before.items():
        signal.signal(sign, handler)


@pytest.mark.usefixtures("own_signals")
def test_the_databases_are_there_before_several_servers_would_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those that several processes make at once are unusable for good."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
    (tmp_path / "recipe.py").write_text(RECIPE)
    state, started = tmp_path / "state", []
    (state / "mlflow").mkdir(parents=True)
    with closing(sqlite3.connect(state / "mlflow" / "mlflow.db")) as connection, connection:
        connection.execute("CREATE TABLE runs (run_uuid PRIMARY KEY)")
        connection.execute("INSERT INTO runs VALUES ('one')")

    def start(command: Any, environment: Any, log_path: Path) -> Ended:
        started.append(log_path.stem)
        if log_path.stem != "mlflow":
            assert (state / "dagster" / "storage" / "schedules" / "schedules.db").is_file()
        return Ended()

    monkeypatch.setattr(ui, "start", start)
    arguments = argparse.Namespace(
        state=state, recipe=str(tmp_path / "recipe.py"), port=free_port(), mlflow_port=free_port()
    )
    with pytest.raises(StorageError, match="the code server did not start"):
        ui.command_ui(arguments)
    assert started == ["mlflow", "code"]
    with closing(sqlite3.connect(state / "mlflow" / "mlflow.db")) as connection:
        assert connection.execute("SELECT stat FROM sqlite_stat1").fetchall() == [("1 1",)]


def test_mlflow_orders_many_runs_by_a_metric_without_comparing_each_with_each(
    migrated_database: Path, tmp_path: Path
) -> None:
    """SQLite must know that there are many; a server that has the database open learns it, too."""
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    database = shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    client, plans = MlflowClient(f"sqlite:///{database}"), list[list[str]]()

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "anon_1" in statement:
            found = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append([row[3] for row in found if "anon_1" in row[3]])

    def grow(first: int, end: int) -> None:
        with closing(sqlite3.connect(database)) as connection, connection:
            runs = [(f"{number:032x}", "me", "FINISHED", "active", 0, number) for number in range(first, end)]
            into = "INSERT INTO runs (run_uuid, user_id, status, lifecycle_stage, experiment_id, start_time)"
            connection.executemany(f"{into} VALUES (?, ?, ?, ?, ?, ?)", runs)
            points = [("map", number / end, 0, 0, 0, run[0]) for number, run in enumerate(runs)]
            connection.executemany("INSERT INTO latest_metrics VALUES (?, ?, ?, ?, ?, ?)", points)

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        for first, end in ((0, 40), (40, 3000)):
            grow(first, end)
            before = client.search_runs(["0"], order_by=["metrics.map DESC"], max_results=2)
            count_runs(database)
            for _ in range(2):  # an explanation alone does not look whether the schema is what it was
                plans.clear()
                after = client.search_runs(["0"], order_by=["metrics.map DESC"], max_results=2)
            assert [run.info.run_id for run in before] == [run.info.run_id for run in after]
    finally:
        event.remove(Engine, "before_cursor_execute", explain)
    assert any("SEARCH anon_1" in step for step in plans[0])


def test_a_servers_log_is_bounded_and_its_newest_lines_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ui, "LOG_BYTES", 1000)
    ui.write_log((f"line {number}\n".encode() for number in range(3000)), tmp_path / "code.log")
    log, before = tmp_path / "code.log", tmp_path / "code.log.1"
    assert sorted(tmp_path.iterdir()) == [log, before]
    kept = (before.read_text() + log.read_text()).splitlines()
    assert kept == [f"line {number}" for number in range(3000 - len(kept), 3000)]
    assert 1000 <= before.stat().st_size < 1010
    assert log.stat().st_size < 1000
