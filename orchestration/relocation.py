"""A state folder that was moved or copied: what it holds must point to itself.

Artifacts and lists of shards name no place, and Dagster's settings are written anew. MLflow's database names the folder
of its files in every row, so a copy would go on reading and writing the files of the original.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from yt8m_assets.errors import StorageError

logger = logging.getLogger(__name__)
_COLUMNS = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Table -> columns of MLflow's schema that hold places of files."""
_BELOW_STATE = "/mlflow/artifacts"
"""Where the embedded tracking keeps files, below the state folder."""


def relocate_tracking(database: Path, artifacts: Path) -> int:
    """Let the rows of the embedded MLflow database that name another state folder name `artifacts`; how many did.

    A database that is not there, or that MLflow has not set up yet, is left alone.
    """
    if not database.is_file():
        return 0
    here = artifacts.as_uri()
    connection = sqlite3.connect(database, timeout=30)
    try:
        with connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "experiments" not in tables:
                return 0
            places = [place for (place,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments")]
            old = {place for place in places if place and place.endswith(_BELOW_STATE)} - {here}
            moved = sum(
                _replace(connection, table, column, place, here)
                for place in old
                for table, columns in _COLUMNS.items()
                if table in tables
                for column in columns
            )
    except sqlite3.Error as error:
        raise StorageError(f"{database}: {error}; {_cure(error, database)}") from error
    finally:
        connection.close()
    for place in old:
        logger.warning(
            "MLflow's files were in %s; this state was moved or copied, they are looked for in %s", place, here
        )
    return moved


def require_sound(database: Path) -> None:
    """Read an embedded MLflow database to its end. Raises StorageError where it is damaged; one that is not there, or
    that another process has locked, is not.
    """
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(database)) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        raise StorageError(f"{database}: damaged: {' '.join(said.split())}; {_cure(sqlite3.DatabaseError(), database)}")


def _cure(error: sqlite3.Error, database: Path) -> str:
    if "locked" in str(error):
        return "another process works on it: run the same command again"
    if isinstance(error, sqlite3.OperationalError):
        return "choose another folder with --state"
    return (
        f"stop `yt8m ui` where it runs, delete {database} and run the same command again; `yt8m sync-mlflow` fills it "
        "from the artifacts"
    )


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    where = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
    return connection.execute(where, (new, len(old) + 1, len(old), old)).rowcount
