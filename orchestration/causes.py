"""From Dagster's wrapping of an error back to the error itself."""

from collections.abc import Iterator

import dagster as dg

from yt8m_assets.errors import PermanentError, StorageError, Yt8mError


class StageFailedError(PermanentError):
    """A stage failed for a reason that is no error of this project's own; the message names the run's step."""


class CheckFailedError(PermanentError):
    """A blocking asset check did not pass; the message names it."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was made from, what that was made from, and so on."""
    seen: BaseException | None = error
    while seen is not None:
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
