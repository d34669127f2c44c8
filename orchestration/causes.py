"""From Dagster's wrapping of an error back to the error itself."""

import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from yt8m_assets.errors import PermanentError, StorageError, TransientError, Yt8mError


class StageFailedError(PermanentError):
    """A stage failed for a reason that is no error of this project's own; the message names the run's step."""


class CheckFailedError(PermanentError):
    """A blocking asset check did not pass; the message names it."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was made from, what that was made from, and so on; each once.

    Who unwraps an error and raises what was inside of it from it closes a circle.
    """
    passed: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and all(seen is not other for other in passed):
        passed.append(seen)
        yield seen
        seen = seen.__cause__ or getattr(seen, "user_exception", None)


def interrupted(error: BaseException) -> bool:
    """Whether a signal is behind the error."""
    return any(isinstance(cause, dg.DagsterExecutionInterruptedError | KeyboardInterrupt) for cause in causes(error))


def original_error(error: BaseException, where: str) -> Yt8mError:
    """The project's own error inside `error`, or a StageFailedError with what is known."""
    innermost = error
    for cause in causes(error):
        if isinstance(cause, Yt8mError):
            return cause
        innermost = cause
    if type(error).__name__ == "DagsterAssetCheckFailedError":
        return CheckFailedError(f"{where}: {error}")
    if isinstance(innermost, OSError) and innermost.filename:
        reason = innermost.strerror or innermost
        return StorageError(f"{innermost.filename}: cannot write or read: {reason} ({where})")
    text = innermost.description if isinstance(innermost, dg.Failure) else str(innermost)
    return StageFailedError(f"{where}: {type(innermost).__name__}: {text}")


@contextmanager
def records_named(home: Path) -> Iterator[None]:
    """Let what SQLite says of Dagster's records, anywhere in the block, say which files those are and what to do.

    So does what Dagster says of a record that it cannot read.
    """
    try:
        yield
    except Exception as error:
        of_ours = isinstance(error, Yt8mError) and not isinstance(error, StageFailedError)
        said = next((cause for cause in causes(error) if isinstance(cause, sqlite3.DatabaseError)), None)
        unread = next((cause for cause in causes(error) if _of_a_record(cause)), None)
        if of_ours or (said is None and unread is None):
            raise
        text = str(said) if said is not None else f"a record cannot be read: {str(unread).splitlines()[0]}"
        raise _records_error(text, home) from error


def _of_a_record(error: BaseException) -> bool:
    """Whether the error was raised while Dagster took one of its records apart."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name in ("deserialize_value", "deserialize_values") for frame, _ in frames)


def _records_error(said: str, home: Path) -> Yt8mError:
    if "locked" in said:
        return TransientError(f"{home}: another process keeps Dagster's records locked; run the same command again")
    if any(word in said for word in ("full", "I/O", "readonly", "unable to open")):
        return StorageError(
            f"{home}: cannot write Dagster's records: {said}; make room, and run the same command again"
        )
    return StorageError(
        f"{home}: Dagster's records are damaged: {said}. Delete {home / 'storage'} and run the same command again: "
        "they begin anew, and what has been published is found, not made again"
    )
