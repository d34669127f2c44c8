"""What SQLite says of Dagster's records names the files and the way out."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from dagster._serdes import deserialize_value

from orchestration.causes import StageFailedError, causes, original_error, records_named
from tests.orchestration.conftest import Graph
from yt8m_assets.errors import ConfigError, StorageError, TransientError, Yt8mError


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_text("<html>" * 99)


def misspell(path: Path) -> None:
    """Let what the database holds be no record any more, though SQLite finds nothing wrong."""
    with closing(sqlite3.connect(path)) as database, database:
        changed = database.execute(
            "UPDATE event_logs SET event = replace(event, 'PathMetadataEntryData', 'PathMetadataEntzyData')"
        )
        assert changed.rowcount > 0


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("history/runs/index.db", misspell),
        ("history/runs/index.db", halve),
        pytest.param("history/runs.db", scribble, marks=pytest.mark.slow),
        pytest.param("schedules/schedules.db", halve, marks=pytest.mark.slow),
    ],
)
def test_damaged_records_are_named_and_begin_anew_where_they_are_deleted(
    own_graph: Graph, name: str, damage: Callable[[Path], None]
) -> None:
    home = own_graph.state.dagster_home
    damage(home / "storage" / name)
    with (
        pytest.raises(StorageError, match=f"{home}: Dagster's records are damaged: .* Delete {home}/storage "),
        own_graph.open() as driver,
    ):
        driver.materialize(until="holdout_ratings")
    shutil.rmtree(home / "storage")
    with own_graph.open() as driver:
        assert driver.materialize(until="holdout_ratings").num_made == 0


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (sqlite3.OperationalError("database is locked"), TransientError, "/home: another process .* again"),
        (sqlite3.OperationalError("disk I/O error"), StorageError, "/home: cannot write .* make room"),
        (sqlite3.OperationalError("database or disk is full"), StorageError, "/home: cannot write .* make room"),
        (sqlite3.OperationalError("no such table: runs"), StorageError, "/home: .* damaged: .* Delete /home/storage"),
    ],
)
@pytest.mark.parametrize("around", [RuntimeError("Dagster's own"), StageFailedError("step: OperationalError")])
def test_what_sqlite_says(said: Exception, kind: type[Yt8mError], text: str, around: Exception) -> None:
    with pytest.raises(kind, match=text), records_named(Path("/home")):
        raise around from said


@pytest.mark.parametrize("text", ['{"__class__": "PathMetadataEntzyData"}', '{"__class__": "Path', '{"__set__": 1}'])
def test_a_record_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(StorageError, match=r"/home: .* damaged: .* Delete /home/storage"), records_named(Path("/home")):
        deserialize_value(text)


def test_other_errors_pass_as_they_are() -> None:
    for error in (ConfigError("a field"), KeyError("key"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, records_named(Path("/home")):
            raise error from (sqlite3.DatabaseError("malformed") if isinstance(error, ConfigError) else None)
        assert caught.value is error


def test_an_error_that_was_unwrapped_passes_as_it_is() -> None:
    """It is the cause of its own wrapping then."""
    inside, wrapping = ConfigError("a field"), RuntimeError("Dagster's own")
    wrapping.__cause__ = inside
    with pytest.raises(ConfigError, match="a field"), records_named(Path("/home")):
        raise original_error(wrapping, "a step") from wrapping
    assert list(causes(inside)) == [inside, wrapping]
