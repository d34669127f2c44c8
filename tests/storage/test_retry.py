"""What is insisted on, by the errors that the client libraries themselves raise."""

import asyncio
from collections.abc import Callable

import aiohttp
import fsspec.exceptions
import pytest
import requests
from gcsfs.retry import HttpError, NonRetryableError, validate_response
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from tests.storage.virtual_time import Clock
from yt8m_assets.errors import ConfigError, TransientError
from yt8m_assets.storage.retry import RetryPolicy, asked_for, insist

QUICK = RetryPolicy(request_seconds=1, deadline_seconds=0.3, first_delay_seconds=0.01, max_delay_seconds=0.02)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def answered(status: int, body: bytes = b"{}") -> BaseException:
    """What gcsfs makes of an answer."""
    with pytest.raises(Exception) as caught:
        validate_response(status, body, "b/bucket/o/name")
    return caught.value


class Attempts:
    """Raises each of some errors once (the last for ever, if `for_ever`), then answers."""

    def __init__(self, *errors: BaseException, for_ever: bool = False) -> None:
        self.errors, self.for_ever, self.count, self.renewals = list(errors), for_ever, 0, 0

    async def __call__(self) -> str:
        self.count += 1
        if self.errors:
            raise self.errors[0] if self.for_ever and len(self.errors) == 1 else self.errors.pop(0)
        return "answer"

    def renew(self) -> str:
        self.renewals += 1
        return "the credentials file f"

    def run(self, renew: Callable[[], str | None] | None = None) -> str:
        return asyncio.run(insist(self, QUICK, renew or self.renew))


INVALID_CREDENTIALS = b'{"error": {"code": 401, "message": "Invalid Credentials"}}'
PASSING = [
    *(answered(status) for status in (408, 429, 500, 502, 503, 504)),
    TransportError("token server"),
    requests.exceptions.ConnectionError(),
    requests.exceptions.ReadTimeout(),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError(),
    fsspec.exceptions.FSTimeoutError(),
    TimeoutError(),
    ConnectionResetError(),
]
RENEWED = [
    RefreshError("invalid_grant"),
    RefreshError("unavailable", retryable=True),
    answered(401, INVALID_CREDENTIALS),
    HttpError({"code": 401, "message": "Invalid Credentials"}),
]
LASTING = [
    answered(400),
    answered(400, b'{"error": {"code": 400, "message": "invalid argument"}}'),
    answered(401, b'{"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.get"}}'),
    answered(403),
    answered(404),
    answered(412),
    answered(416),
    NonRetryableError("no refresh token"),
    DefaultCredentialsError("none"),
    PermissionError(13, "denied"),
    KeyError("a mistake of ours"),
]


def name(error: BaseException) -> str:
    return f"{type(error).__name__}-{error}"[:60]


@pytest.mark.parametrize("error", PASSING, ids=name)
def test_what_may_pass_is_asked_again_until_the_deadline(error: BaseException, clock: Clock) -> None:
    attempts = Attempts(error, error)
    assert attempts.run() == "answer"
    assert (attempts.count, attempts.renewals) == (3, 0)
    asked_for.set("gs://bucket/name")
    lasting = Attempts(error, for_ever=True)
    begun = clock.seconds
    with pytest.raises(TransientError, match=r"^gs://bucket/name: .*; gave up after \d+ attempts in 0\.3 s; try"):
        lasting.run()
    assert QUICK.deadline_seconds - QUICK.max_delay_seconds < clock.seconds - begun <= QUICK.deadline_seconds
    assert lasting.count > 5


@pytest.mark.parametrize("error", RENEWED, ids=name)
def test_credentials_are_renewed_before_each_further_attempt(error: BaseException) -> None:
    attempts = Attempts(error, error, error)
    assert attempts.run() == "answer"
    assert (attempts.count, attempts.renewals) == (4, 3)


@pytest.mark.parametrize("error", RENEWED, ids=name)
def test_credentials_that_stay_bad_past_the_deadline_are_no_passing_fault(error: BaseException) -> None:
    attempts = Attempts(error, for_ever=True)
    with pytest.raises(type(error)) as caught:
        attempts.run()
    assert caught.value is error
    assert attempts.count > 5


@pytest.mark.parametrize("error", [*LASTING, *RENEWED], ids=name)
def test_what_does_not_pass_is_raised_as_it_is_at_once(error: BaseException) -> None:
    """So are bad credentials where there are none to renew."""
    attempts = Attempts(error)
    with pytest.raises(type(error)) as caught:
        attempts.run(lambda: None)
    assert caught.value is error
    assert attempts.count == 1


@pytest.mark.parametrize("field", ["request_seconds", "deadline_seconds", "first_delay_seconds", "max_delay_seconds"])
def test_a_policy_names_the_field_that_makes_no_sense(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"retry\.{field} = 0: must be above zero"):
        RetryPolicy(**{field: 0})
    RetryPolicy(**{field: 0.001})


def test_patience_by_default() -> None:
    """A minute for a request, five for a fault to pass: longer than a token server's or a load balancer's hiccup."""
    policy = RetryPolicy()
    assert (policy.request_seconds, policy.deadline_seconds) == (60, 300)
    assert 0.25 <= policy.delay(0) <= 0.5
    assert 15 <= policy.delay(20) <= 30
