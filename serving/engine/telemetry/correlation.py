"""The headers that relate a request to others: `X-Request-ID`, `traceparent`, `tracestate` (W3C Trace Context)."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple, Self

REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"

PATTERNS = {
    REQUEST_ID: rb"[A-Za-z0-9._:=+/@~-]{1,128}",
    TRACEPARENT: rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
    TRACESTATE: rb"[!-~](?:[ -~]{0,510}[!-~])?",
}
"""Of valid values; no value has a character that JSON or a header would have to escape."""
_is_request_id = re.compile(PATTERNS[REQUEST_ID]).fullmatch
_is_tracestate = re.compile(PATTERNS[TRACESTATE]).fullmatch


class Correlation(NamedTuple):
    """The values of a request's headers; empty without a valid one."""

    request_id: bytes = b""
    traceparent: bytes = b""
    """Any bytes: `serving.engine.telemetry.sampling.Parent` reads it."""
    tracestate: bytes = b""

    @classmethod
    def of(cls, headers: Mapping[bytes, bytes]) -> Self:
        """Return those in `headers`, whose names are in lower case."""
        request_id, tracestate = headers.get(REQUEST_ID, b""), headers.get(TRACESTATE, b"")
        return cls(
            request_id if _is_request_id(request_id) else b"",
            headers.get(TRACEPARENT, b""),
            tracestate if _is_tracestate(tracestate) else b"",
        )


NO_CORRELATION = Correlation()


_ids: list[bytes] = []  # drawn together, which takes an eighth of the time per id
_DRAWN = 64
os.register_at_fork(after_in_child=_ids.clear)


def new_request_id() -> bytes:
    """Return 32 random hexadecimal digits."""
    if not _ids:
        digits = os.urandom(16 * _DRAWN).hex().encode()
        _ids.extend(digits[start : start + 32] for start in range(0, len(digits), 32))
    return _ids.pop()
