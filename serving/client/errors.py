"""What can go wrong between a client and the service."""

from distillery import DistilleryError


class ClientError(DistilleryError):
    """The client got no predictions.

    ClientError
    ├── InvalidImagesError       what was to be sent is not what the service reads; nothing was sent
    ├── UnreachableError         no connection, or it was lost before the answer, at every attempt
    ├── SlowServiceError         the service took longer than the time-out
    ├── MalformedAnswerError     something answered that is not the service
    └── StatusError              the service said no: `status` and its own words
        ├── RefusedError         4xx: the same request will be refused again
        └── FailedError          5xx: the service cannot answer it now
    """


class InvalidImagesError(ClientError, ValueError):
    """Not images of the kind the service reads; nothing was sent."""


class UnreachableError(ClientError):
    """No connection, or it was lost before the answer, at every attempt."""


class SlowServiceError(ClientError):
    """No answer within the time-out."""


class MalformedAnswerError(ClientError):
    """An answer that is not one of this service."""


class StatusError(ClientError):
    """The service said no; `message` is its own explanation."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status
        self.message = message


class RefusedError(StatusError):
    """Status 4xx: the same request will be refused again."""


class FailedError(StatusError):
    """Status 5xx: the service cannot answer now."""
