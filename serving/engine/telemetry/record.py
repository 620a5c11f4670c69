"""The record of one request that has ended, from which its line of the access log and its span are made."""

from typing import NamedTuple, Protocol

from serving.codecs.base import Codec, Timing
from serving.engine.telemetry.correlation import Correlation


class Result(NamedTuple):
    """The part of a request's record that only one with predictions has."""

    images: int
    """Number of its images; the predictions themselves are not kept: to free them later costs several times as much."""
    started: float
    """When the run of its batch began, and finished."""
    finished: float
    timing: Timing
    """Of the response."""
    encoding: float
    """When encoding of the response began."""


class Served(Protocol):
    """The part of `serving.engine.request.Endpoint` that observers need."""

    @property
    def name(self) -> str:
        """The name of the model."""

    @property
    def version(self) -> str:
        """Its version."""

    @property
    def slot(self) -> str:
        """Of its metrics."""


class Record(NamedTuple):
    """One request; times are those of `time.monotonic`, and 0 for a stage that it has not reached."""

    id: bytes
    trace_id: str
    """Empty unless the request has a span."""
    codec: Codec
    endpoint: Served | None
    """None for a request that named no served model."""
    client: str | None
    """The name of its key, if clients have keys of their own."""
    status: int
    code: str | None
    """Of its error."""
    result: Result | None
    entered: float
    received: float
    """When its body was complete."""
    decoded: float
    ended: float


class Observable(Protocol):
    """The part of `serving.engine.request.InFlightRequest` that observers need."""

    correlation: Correlation
    trace_id: str

    def record(self, status: int, ended: float) -> Record:
        """Return the record of the request, which has just ended."""


class Observer(Protocol):
    """Notified of every prediction request that has ended; must not raise, and decides before it makes a record."""

    def observe(self, request: Observable, status: int, ended: float) -> None:
        """Observe a request that has ended with `status`."""
