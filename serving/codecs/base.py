"""What a protocol is to this service: how a request becomes images, and a prediction an answer.

Everything else, from authentication to batching and metrics, is the same for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from serving.codecs.bodies import Limits
from serving.codecs.errors import Header, RequestError
from serving.engine.batching import Prediction
from serving.model.repository import Manifest
from serving.model.session import Images


class Request(NamedTuple):
    """What a client sent: its headers, with names in lower case, and its body."""

    headers: Mapping[bytes, bytes]
    content: bytes


class Query(NamedTuple):
    """What a request asks for: images `uint8 [N, 28, 28]`, and whatever the answer needs to know again."""

    images: Images
    wishes: Any = None


class Reply(NamedTuple):
    """What goes back to the client."""

    status: int
    content: bytes
    headers: Sequence[Header] = ()


class Timing(NamedTuple):
    """Milliseconds that one request spent where."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    total_ms: float

    def header(self) -> Header:
        """`Server-Timing` (W3C), which browsers' developer tools draw."""
        return b"server-timing", b"decode;dur=%g, queue;dur=%g, inference;dur=%g, total;dur=%g" % self


class Protocol(ABC):
    """One way of asking for predictions. Stateless, and the same object in every process."""

    name: ClassVar[str]
    """The label in the metrics."""

    @abstractmethod
    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse what the headers alone show to be wrong, before the body is read. Raises `RequestError`."""

    @abstractmethod
    def is_quick(self, request: Request) -> bool:
        """Whether decoding is so short that the event loop need not be spared."""

    @abstractmethod
    def decode(self, request: Request, limits: Limits) -> Query:
        """Raises a `RequestError` that says what was found and what would be right."""

    @abstractmethod
    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        """Write the answer."""

    @abstractmethod
    def refuse(self, error: RequestError) -> Reply:
        """Tell the client what is wrong."""
