"""What a client is told when a request cannot be answered: one status, one code, one sentence, one body.

    {"error": {"code": "invalid_shape", "message": "image has 783 values; …"}}

Every message names what was found and what would be right, and never shows the inside of the service.
"""

from collections.abc import Sequence

import orjson

Header = tuple[bytes, bytes]


class RequestError(Exception):
    """A request that is refused. Its message goes to the client as it is.

    RequestError
    ├── MalformedBody          400 malformed_body
    ├── Unauthorized           401 unauthorized
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
    │   └── TooManyImages      422 too_many_images
    ├── Overloaded             503 overloaded
    ├── TimedOut               504 timed_out
    └── InternalError          500 internal_error
    """

    status = 500
    code = "internal_error"
    headers: Sequence[Header] = ()


class MalformedBody(RequestError):  # noqa: N818 - named after what is wrong; all are RequestErrors
    """The body cannot be parsed as what its media type says."""

    status, code = 400, "malformed_body"


class Unauthorized(RequestError):  # noqa: N818
    """The API key is missing or wrong."""

    status, code = 401, "unauthorized"
    headers = ((b"www-authenticate", b'ApiKey header="X-API-Key"'),)


class UnknownModel(RequestError):  # noqa: N818
    """No model of this name is served."""

    status, code = 404, "unknown_model"


class MethodNotAllowed(RequestError):  # noqa: N818
    """Predictions are asked for with POST."""

    status, code = 405, "method_not_allowed"
    headers = ((b"allow", b"POST"),)


class SlowBody(RequestError):  # noqa: N818
    """The body did not arrive in time."""

    status, code = 408, "slow_body"
    headers = ((b"connection", b"close"),)  # the rest of the body will never be waited for


class BodyTooLarge(RequestError):  # noqa: N818
    """The body is longer than the service reads."""

    status, code = 413, "body_too_large"


class TooManyPixels(RequestError):  # noqa: N818
    """A picture declares more pixels than the service decodes."""

    status, code = 413, "too_many_pixels"


class UnsupportedMediaType(RequestError):  # noqa: N818
    """The body is of a kind the service does not read."""

    status, code = 415, "unsupported_media_type"


class UnsupportedEncoding(RequestError):  # noqa: N818
    """The body is compressed in a way the service does not read."""

    status, code = 415, "unsupported_encoding"
    headers = ((b"accept-encoding", b"gzip, deflate"),)


class InvalidInput(RequestError):  # noqa: N818
    """The body was parsed, but is not what is asked for."""

    status, code = 422, "invalid_input"


class InvalidShape(InvalidInput):
    """Not 28×28 and not 784 values."""

    code = "invalid_shape"


class InvalidType(InvalidInput):
    """Something else where an integer, a list or a string belongs."""

    code = "invalid_type"


class InvalidRange(InvalidInput):
    """A pixel outside 0–255."""

    code = "invalid_range"


class InvalidPicture(InvalidInput):
    """Not a PNG or JPEG that can be decoded, or one without any ink."""

    code = "invalid_picture"


class TooManyImages(InvalidInput):
    """More images than one request may carry."""

    code = "too_many_images"


class Overloaded(RequestError):  # noqa: N818
    """More requests are waiting than the service holds."""

    status, code = 503, "overloaded"
    headers = ((b"retry-after", b"1"),)


class TimedOut(RequestError):  # noqa: N818
    """The answer was not ready in time."""

    status, code = 504, "timed_out"


class InternalError(RequestError):
    """The service failed; its log says why."""

    status, code = 500, "internal_error"

    def __init__(self) -> None:
        super().__init__("the service failed; its log says why")


def error_body(code: str, message: str) -> bytes:
    """The JSON document that every refused request is answered with."""
    return orjson.dumps({"error": {"code": code, "message": message}})
