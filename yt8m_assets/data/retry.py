"""Retrying calls to a store: with jitter, a total deadline, and only where trying again can help."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from yt8m_assets.errors import ConfigError, MissingDataError, StorageError, TransientError

logger = logging.getLogger(__name__)
T = TypeVar("T")
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)


class ChangedBytesError(Exception):
    """What arrived is not what the store says it holds; asked for once more before it counts as corrupt."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to insist."""

    request_seconds: float = 60.0
    """Time for one request; a hang ends then."""
    deadline_seconds: float = 300.0
    """Time for a call with all its attempts."""
    first_delay_seconds: float = 0.5
    """Upper bound of the first pause; it doubles with every attempt."""
    max_delay_seconds: float = 30.0
    """Upper bound of any pause."""

    def __post_init__(self) -> None:
        for name in ("request_seconds", "deadline_seconds", "first_delay_seconds", "max_delay_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"retry.{name} = {getattr(self, name)}: must be above zero")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after a failed attempt (from 0): between half and all of a doubling bound."""
        bound = min(self.first_delay_seconds * 2**attempt, self.max_delay_seconds)
        return bound * random.uniform(0.5, 1.0)


def call(action: Callable[[], T], uri: str, permission: str, policy: RetryPolicy) -> T:
    """Run `action` until it succeeds, the fault is permanent, or the deadline passes.

    Raises MissingDataError (404), StorageError (401, 403: names bucket and permission, never a token) and
    TransientError (429, 5xx, time-outs, resets that did not pass). FileExistsError goes through.
    """
    deadline = time.monotonic() + policy.deadline_seconds
    attempt = 0
    while True:
        try:
            return action()
        except FileNotFoundError as error:
            if isinstance(error, MissingDataError):
                raise
            raise MissingDataError(f"{uri}: no such object") from None
        except Exception as error:
            cause = _transient_cause(error)
            if cause is None:
                denied = _denied(error, uri, permission)
                if denied is not None:
                    raise denied from None  # the original may quote headers
                raise
            pause = policy.delay(attempt)
            attempt += 1
            if time.monotonic() + pause > deadline:
                spent = f"{attempt} attempts in {policy.deadline_seconds:g} s"
                raise TransientError(f"{uri}: {cause}; gave up after {spent}; try again later") from error
            logger.warning("%s: %s; attempt %d follows in %.1f s", uri, cause, attempt + 1, pause)
            time.sleep(pause)


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of gcsfs, aiohttp or requests, where it has one."""
    code: Any = getattr(error, "code", None) or getattr(error, "status", None)
    if code is None and isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403
    try:
        return int(code)
    except (TypeError, ValueError):
        return None


def _transient_cause(error: BaseException) -> str | None:
    """A few words when trying again may help, else None."""
    import aiohttp
    import fsspec.exceptions
    import requests

    status = _status(error)
    if status is not None:
        return f"the store answered {status}" if status in _TRANSIENT_STATUS else None
    if isinstance(error, requests.exceptions.ProxyError):
        return "the store answered 502"  # gcsfs gives this name to every 502
    if isinstance(error, asyncio.TimeoutError | TimeoutError | fsspec.exceptions.FSTimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientError | ConnectionError | requests.exceptions.RequestException):
        return f"the connection failed ({type(error).__name__})"
    return None


def _denied(error: BaseException, uri: str, permission: str) -> Exception | None:
    status = _status(error)
    if status not in (401, 403):
        return None
    match = re.match(r"[a-z0-9]+://([^/]+)", uri)
    bucket = match.group(1) if match else uri
    return StorageError(
        f"{uri}: access denied ({status}); the account in use needs {permission} on bucket {bucket!r}. "
        "Grant it, or log in with `gcloud auth application-default login`"
    )
