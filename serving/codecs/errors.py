"""The errors of a request: each has a status, a code and a message.

    {"error": {"code": "invalid_shape", "message": "image has 783 values; …"}}

Every message names the value found and what is expected, and reveals nothing about the service's internals.
"""

from collections.abc import Iterable, Iterator, Sequence

import orjson

Header = tuple[bytes, bytes]


class RequestError(Exception):
    """Base class of all errors; the client receives the message unchanged.

    RequestError
    ├── MalformedBody          400 malformed_body
    ├── Unauthorized           401 unauthorized
    ├── Forbidden              403 forbidden
    ├── UnknownModel           404 unknown_model
    ├── MethodNotAllowed       405 method_not_allowed
    ├── SlowBody               408 slow_body
    ├── BodyTooLarge           413 body_too_large
    ├── TooManyPixels          413 too_many_pixels
    ├── UnsupportedMediaType   415 unsupported_media_type
    ├── UnsupportedEncoding    415 unsupported_encoding
    ├── InvalidInput           422 invalid_input
    │   ├── InvalidShape       422 invalid_shape
    │   ├── InvalidType        422 invalid_type
    │   ├── InvalidRange       422 invalid_range
    │   ├── InvalidPicture     422 invalid_picture
    │   ├── TooManyImages      422 too_many_images
    │   └── NotAccepted        422 not_accepted
    ├── FeedbackError          of POST /feedback only
    │   ├── UnknownRequest     404 unknown_request
    │   └── AlreadyLabelled    409 already_labelled
    ├── RateLimited            429 rate_limited
    ├── Overloaded             503 overloaded
    ├── NotReady               503 not_ready
    ├── TimedOut               504 timed_out
    └── InternalError          500 internal_error
    """

    status = 500
    code = "internal_error"
    headers: Sequence[Header] = ()


class MalformedBody(RequestError):  # noqa: N818 - named after the problem; all are RequestErrors
    """The body cannot be parsed as its media type."""

    status, code = 400, "malformed_body"


class Unauthorized(RequestError):  # noqa: N818
    """The API key is missing or wrong."""

    status, code = 401, "unauthorized"
    headers = ((b"www-authenticate", b'ApiKey header="X-API-Key"'),)


class Forbidden(RequestError):  # noqa: N818
    """The API key is not for this route."""

    status, code = 403, "forbidden"


class UnknownModel(RequestError):  # noqa: N818
    """No model of this name is served."""

    status, code = 404, "unknown_model"


class MethodNotAllowed(RequestError):  # noqa: N818
    """Prediction requests use POST."""

    status, code = 405, "method_not_allowed"
    headers = ((b"allow", b"POST"),)


class SlowBody(RequestError):  # noqa: N818
    """The body did not arrive in time."""

    status, code = 408, "slow_body"
    headers = ((b"connection", b"close"),)  # the rest of the body is not read


class BodyTooLarge(RequestError):  # noqa: N818
    """The body exceeds the size limit."""

    status, code = 413, "body_too_large"


class TooManyPixels(RequestError):  # noqa: N818
    """Decoding the pictures would hold more pixels in memory than the limit."""

    status, code = 413, "too_many_pixels"


class UnsupportedMediaType(RequestError):  # noqa: N818
    """The media type of the body is not supported, and its content is not recognised."""

    status, code = 415, "unsupported_media_type"


class UnsupportedEncoding(RequestError):  # noqa: N818
    """The compression of the body is not supported."""

    status, code = 415, "unsupported_encoding"
    headers = ((b"accept-encoding", b"gzip, deflate"),)


class InvalidInput(RequestError):  # noqa: N818
    """The body was parsed, but is not a valid request."""

    status, code = 422, "invalid_input"


class InvalidShape(InvalidInput):
    """An image has neither 28×28 nor 784 values."""

    code = "invalid_shape"


class InvalidType(InvalidInput):
    """A value has another type than the expected integer, list or string."""

    code = "invalid_type"


class InvalidRange(InvalidInput):
    """A pixel is outside 0–255."""

    code = "invalid_range"


class InvalidPicture(InvalidInput):
    """A picture is in an unsupported format, is damaged, or shows no digit."""

    code = "invalid_picture"


class TooManyImages(InvalidInput):
    """The request exceeds the limit of images."""

    code = "too_many_images"


class NotAccepted(InvalidInput):
    """A prediction's confidence is below the model's threshold, and the service rejects such images."""

    code = "not_accepted"


class FeedbackError(RequestError):
    """A label that cannot be counted."""


class UnknownRequest(FeedbackError):  # noqa: N818
    """No request of the client has this id, or it is too long ago."""

    status, code = 404, "unknown_request"


class AlreadyLabelled(FeedbackError):  # noqa: N818
    """The image has another label already."""

    status, code = 409, "already_labelled"


class RateLimited(RequestError):  # noqa: N818
    """The API key has reached its rate limit."""

    status, code = 429, "rate_limited"

    def __init__(self, message: str, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.headers = headers


class Overloaded(RequestError):  # noqa: N818
    """The service has reached its limit of requests in flight."""

    status, code = 503, "overloaded"
    headers = ((b"retry-after", b"1"),)


class NotReady(RequestError):  # noqa: N818
    """The service starts no new work, or cannot: it is shutting down, or a worker is being replaced."""

    status, code = 503, "not_ready"
    headers = ((b"retry-after", b"1"),)


class TimedOut(RequestError):  # noqa: N818
    """The prediction was not ready in time."""

    status, code = 504, "timed_out"


class InternalError(RequestError):
    """An internal error; the service's log has the details."""

    status, code = 500, "internal_error"

    def __init__(self) -> None:
        super().__init__("internal error; see the log of the service")


def prediction_errors(base: type[RequestError] = RequestError) -> Iterator[type[RequestError]]:
    """Yield the classes of the errors that a prediction request can end with, those below `base`."""
    for error in base.__subclasses__():
        if error is not FeedbackError:
            yield error
            yield from prediction_errors(error)


def error_body(code: str, message: str) -> bytes:
    """Return the JSON document of an error response."""
    return orjson.dumps({"error": {"code": code, "message": message}})


def unknown_model(name: str, known: Iterable[str]) -> UnknownModel:
    """Return the error for a model that is not in the repository."""
    return UnknownModel(f"there is no model {name[:80]!r}; this service has {', '.join(known)}")
