"""The header by which a client says how long it waits; Ray Serve's has the same name."""

import math
from collections.abc import Mapping

from serving.codecs.errors import InvalidInput

HEADER = b"x-request-timeout-seconds"


def timeout_of(headers: Mapping[bytes, bytes]) -> float:
    """Return the seconds that the header names, without one infinity. Raises `InvalidInput`."""
    text = headers.get(HEADER)
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidInput(
            f"X-Request-Timeout-Seconds is {text[:40]!r}; expected a number of seconds above 0"
        )
    return seconds
