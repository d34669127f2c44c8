"""Insisting on a request to a store: with jitter, until nothing has moved for too long, and only where it can help."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from yt8m_assets.errors import ConfigError, TransientError

logger = logging.getLogger(__name__)
T = TypeVar("T")
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
asked_for: ContextVar[str] = ContextVar("asked_for", default="the store")
"""URI that the call at hand is about, for warnings; it crosses into fsspec's own thread."""


class ChangedBytesError(Exception):
    """What arrived is not what the store says it holds; asked for once more before it counts as corrupt."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to insist."""

    request_seconds: float = 60.0
    """Time for one request; a hang ends then."""
    deadline_seconds: float = 300.0
    """Time without progress (an answered request) before a call gives up; how long it takes in all is not limited."""
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


class Patience:
    """What to do after each failed attempt at a request."""

    def __init__(self, policy: RetryPolicy, renew: Callable[[], str | None] = lambda: None) -> None:
        self.policy, self.renew = policy, renew
        self._deadline = time.monotonic() + policy.deadline_seconds
        self._number = 0

    def pause(self, error: Exception) -> float:
        """Seconds to wait before the next attempt. Raises as `insist` where there is to be none."""
        refused = credentials_failed(error)
        cause = _transient_cause(error)
        if refused and (owner := self.renew()) is not None:
            cause = f"{owner} could not be renewed or is not accepted"
        if cause is None:
            raise error
        pause = self.policy.delay(self._number)
        self._number += 1
        if time.monotonic() + pause > self._deadline:
            if refused:
                raise error
            spent = f"{self._number} attempts in {self.policy.deadline_seconds:g} s"
            raise TransientError(f"{asked_for.get()}: {cause}; gave up after {spent}; try again later") from error
        logger.warning("%s: %s; attempt %d follows in %.1f s", asked_for.get(), cause, self._number + 1, pause)
        return pause


async def insist(
    attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, renew: Callable[[], str | None] = lambda: None
) -> T:
    """Await `attempt` until it succeeds, its fault is permanent (which is raised as it is), or the deadline passes.

    `renew` forgets the credentials in use, so that the next attempt asks for new ones, and says whose they are; None
    where there are none to renew. Raises TransientError (429, 5xx, time-outs, resets that did not pass); a renewal of
    credentials that keeps failing is raised as it is, for it then is no passing fault.
    """
    patience = Patience(policy, renew)
    while True:
        try:
            return await attempt()
        except Exception as error:  # noqa: BLE001 - raised again unless it may pass
            pause = patience.pause(error)
        await asyncio.sleep(pause)


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error of gcsfs, aiohttp or requests, where it has one."""
    code: Any = getattr(error, "code", None) or getattr(error, "status", None)
    if code is None and isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403
    try:
        return int(code)
    except (TypeError, ValueError):
        return None


def credentials_failed(error: BaseException) -> bool:
    """Whether a token could not be renewed, or the store no longer takes it: what gcsfs itself tries again."""
    from google.auth.exceptions import RefreshError

    return isinstance(error, RefreshError) or (status_of(error) == 401 and "Invalid Credentials" in str(error))


def _transient_cause(error: BaseException) -> str | None:
    """A few words when trying again may help, else None."""
    import http.client
    import ssl

    import aiohttp
    import requests
    from google.auth.exceptions import TransportError

    status = status_of(error)
    if status is not None:
        return f"the store answered {status}" if status in _TRANSIENT_STATUS else None
    if isinstance(error, requests.exceptions.ProxyError):
        return "the store answered 502"  # gcsfs gives this name to every 502
    if isinstance(error, TransportError):
        return "the server of access tokens cannot be reached"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return None
    lost = aiohttp.ClientError | ConnectionError | requests.exceptions.RequestException
    if isinstance(error, lost | http.client.HTTPException | ssl.SSLError):
        return f"the connection failed ({type(error).__name__})"
    return None
