"""Retries: the requests that are sent again, and the delay before.

A prediction changes nothing in the service, and a true digit counts once, so it is safe to send both twice even though
they are POSTs: a lost connection is retried. A timeout is not: the caller has waited long enough, and a second request
does not help a service that is late. An error status is final, except a 503 with Retry-After.
"""

import json
import random

import httpx

from serving.client.errors import FailedError, RefusedError, SlowServiceError, UnreachableError

_MIN_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0
_MAX_RETRY_AFTER_S = 10.0


def delay_after_error(error: httpx.RequestError, attempt: int, retries: int) -> float:
    """Return the seconds to wait before the next attempt; `attempt` counts from 0.

    Raises `SlowServiceError`, and `UnreachableError` after the last attempt.
    """
    request = f"{error.request.method} {error.request.url}"
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, httpx.TimeoutException):
        raise SlowServiceError(f"{request}: {reason}") from None
    if attempt == retries:
        raise UnreachableError(f"{request}, tried {attempt + 1} times: {reason}; is it running?") from None
    return _backoff(attempt)


def delay_after_status(response: httpx.Response, attempt: int, retries: int) -> float:
    """Return the seconds to wait after an error status. Raises `RefusedError`, `FailedError` where it is final."""
    retry_after = response.headers.get("Retry-After", "")
    final = (
        response.status_code != 503 or not retry_after.isdecimal() or int(retry_after) > _MAX_RETRY_AFTER_S
    )
    if final or attempt == retries:
        kind = FailedError if response.status_code >= 500 else RefusedError
        raise kind(response.status_code, _message(response))
    return int(retry_after) + _backoff(attempt)


def _backoff(attempt: int) -> float:
    longest = min(_MAX_BACKOFF_S, _MIN_BACKOFF_S * 2**attempt)
    return random.uniform(longest / 2, longest)  # noqa: S311 - spreads clients, hides nothing


def _message(response: httpx.Response) -> str:
    """The service's own message in either of its forms; the text of anything else, cut short."""
    try:
        error = json.loads(response.content)["error"]
        return str(error if isinstance(error, str) else error["message"])
    except (KeyError, TypeError, ValueError):
        return response.text[:200]
