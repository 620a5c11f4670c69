"""The errors of the client."""

from distillery import DistilleryError


class ClientError(DistilleryError):
    """The client got no predictions.

    ClientError
    ├── InvalidImagesError       the input is not of the form that the service reads; nothing was sent
    ├── InvalidLabelsError       digits that are none, or not one for each image; nothing was sent
    ├── UnreachableError         no connection, or it was lost before the response, at every attempt
    ├── SlowServiceError         no response within the timeout
    ├── MalformedAnswerError     the response is not one of this service
    └── StatusError              an error status: `status`, and the service's `message`
        ├── RefusedError         4xx: the same request will be rejected again
        └── FailedError          5xx: the service cannot answer now
    """


class InvalidImagesError(ClientError, ValueError):
    """The input is not of the form that the service reads; nothing was sent."""


class InvalidLabelsError(ClientError, ValueError):
    """Digits that are none, or not one for each image; nothing was sent."""


class UnreachableError(ClientError):
    """No connection, or it was lost before the response, at every attempt."""


class SlowServiceError(ClientError):
    """No response within the timeout."""


class MalformedAnswerError(ClientError):
    """The response is not one of this service."""


class StatusError(ClientError):
    """The service responded with an error status; `message` is its explanation."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status
        self.message = message


class RefusedError(StatusError):
    """Status 4xx: the same request will be rejected again."""


class FailedError(StatusError):
    """Status 5xx: the service cannot answer now."""
