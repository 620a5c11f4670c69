"""The interface of a codec: from headers and body to images, from a prediction to the reply.

A codec implements one wire format. Authentication, limits, batching and metrics are common to all codecs and
live in `serving.engine`. Six types carry one request through the service:

    Head → Query → Prediction → Timing → Reply, held together by `serving.engine.request.InFlightRequest`
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from serving.codecs.errors import Header, RequestError
from serving.codecs.pictures.digit_line import Candidate
from serving.model.repository import Manifest
from serving.model.tensors import Images, Scores


class Head(NamedTuple):
    """The headers of a request as far as decoding needs them; `Codec.check` is the only place that parses them."""

    api_key: bytes = b""
    media_type: bytes = b""
    boundary: bytes = b""
    """Of a multipart form; empty if the header names none."""
    encoding: bytes = b""
    """`Content-Encoding` in lower case; empty for an uncompressed body."""
    json_bytes: int | None = None
    """Length of the JSON before a binary tensor; None if the whole body is JSON."""
    includes_input: bool = False
    """The response includes the images that the model saw."""
    timeout: float = math.inf
    """Seconds in which the client expects the reply."""


class RequestedOutput(NamedTuple):
    """One output tensor of the Open Inference Protocol and its form in the response."""

    name: str
    binary: bool
    classes: int = 0
    """0 for the tensor itself, n for the n most probable digits as strings."""


class Query(NamedTuple):
    """A decoded request: images `uint8 [N, 28, 28]`, and what its response needs."""

    images: Images
    id: str | None = None
    """Of the Open Inference Protocol."""
    outputs: Sequence[RequestedOutput] = ()
    """Requested by the Open Inference Protocol."""
    includes_input: bool = False
    """As in `Head`."""
    line: Sequence[Candidate] = ()
    """The candidates that the images are, of a picture with a line of digits."""


class Prediction(NamedTuple):
    """Results for N images, and when their run started and finished (`time.monotonic`).

    `confidence` is the calibrated probability that an image shows a digit, and the predicted one; `accepted` is whether
    it reaches the model's threshold. A model without an acceptance rule has neither. `escalated` is whether the teacher
    of a cascade predicted; other models have none.
    """

    digits: list[int]  # N
    logits: Scores  # [N, 10]
    probabilities: Scores  # [N, 10]
    started: float
    finished: float
    confidence: list[float] | None = None  # N
    accepted: list[bool] | None = None  # N
    escalated: list[bool] | None = None  # N

    def part(self, chosen: slice) -> "Prediction":
        """Return the results for consecutive images."""
        return Prediction(
            self.digits[chosen],
            self.logits[chosen],
            self.probabilities[chosen],
            self.started,
            self.finished,
            self.confidence and self.confidence[chosen],
            self.accepted and self.accepted[chosen],
            self.escalated and self.escalated[chosen],
        )

    def selection(self, chosen: Sequence[int]) -> "Prediction":
        """Return the results for the images with these indices."""
        return self._replace(
            digits=[self.digits[index] for index in chosen],
            logits=self.logits[chosen],
            probabilities=self.probabilities[chosen],
            confidence=self.confidence and [self.confidence[index] for index in chosen],
            accepted=self.accepted and [self.accepted[index] for index in chosen],
            escalated=self.escalated and [self.escalated[index] for index in chosen],
        )


class Timing(NamedTuple):
    """Milliseconds that one request spent in each stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float

    def header(self) -> Header:
        """`Server-Timing` (W3C), which browsers' developer tools display."""
        return b"server-timing", b"decode;dur=%g, queue;dur=%g, inference;dur=%g, total;dur=%g" % self


class Reply(NamedTuple):
    """A response, independent of the transport that sends it."""

    status: int
    content: bytes
    headers: Sequence[Header] = ()


@dataclass(frozen=True)
class BodyLimits:
    """Limits on the content of one request."""

    max_images: int = 256
    max_pixels: int = 16_000_000
    """Sum over all pictures of a request, as decoding holds them: `serving.codecs.pictures.decode`."""
    max_body_bytes: int = 16 * 1024 * 1024
    """Of a compressed body after decompression."""


class Codec(ABC):
    """One wire format for predictions. Stateless: one instance serves all requests of a process."""

    name: ClassVar[str]
    """The label `protocol` in the metrics."""
    route: ClassVar[str]
    """In the metrics by route, the access log and spans."""

    @abstractmethod
    def check(self, headers: Mapping[bytes, bytes], query: bytes = b"") -> Head:
        """Parse headers, their names in lower case, and the URL's query before the body is read.

        Raises `RequestError`.
        """

    @abstractmethod
    def decodes_inline(self, head: Head, content: bytes) -> bool:
        """Return whether decoding is short enough for the event loop, about a millisecond at most."""

    @abstractmethod
    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:
        """Decode the body. Raises `RequestError` naming the value found and what is expected."""

    def select(self, query: Query, prediction: Prediction) -> tuple[Query, Prediction]:
        """Return the part of the images, and of their predictions, that the response is about: all of them."""
        return query, prediction

    @abstractmethod
    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        """Encode the response to `query`."""

    @abstractmethod
    def reject(self, error: RequestError) -> Reply:
        """Encode an error response."""
