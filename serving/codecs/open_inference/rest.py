"""The Open Inference Protocol (KServe V2) over REST: `POST /v2/models/{model}[/versions/{version}]/infer`.

The other routes of /v2 are in `serving.http.v2.routes`. Every Content-Type is accepted, because Triton's client
sends none. Every error is `{"error": "…"}`, and every invalid input is a 400.
"""

from collections.abc import Mapping

import orjson

from serving.codecs.base import BodyLimits, Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.bodies.body import MAX_INLINE_BYTES
from serving.codecs.bodies.decompress import content_encoding, decompress
from serving.codecs.errors import InvalidInput, MalformedBody, RequestError
from serving.codecs.open_inference.request import read_request
from serving.codecs.open_inference.response import HEADER_LENGTH, JSON, write_response
from serving.codecs.timeout import timeout_of
from serving.model.repository import Manifest

PREFIX = "/v2"


class OpenInferenceCodec(Codec):
    """The REST format: `request` decodes, `response` encodes, `schemas` documents both."""

    name = "v2"
    route = f"{PREFIX}/models/{{model}}/infer"

    def check(self, headers: Mapping[bytes, bytes], query: bytes = b"") -> Head:  # noqa: ARG002
        encoding = content_encoding(headers)
        return Head(
            headers.get(b"x-api-key", b""),
            encoding=encoding,
            json_bytes=_json_bytes(headers),
            timeout=timeout_of(headers),
        )

    def decodes_inline(self, head: Head, content: bytes) -> bool:
        json_bytes = len(content) if head.json_bytes is None else head.json_bytes
        return not head.encoding and json_bytes <= MAX_INLINE_BYTES

    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:
        content = decompress(head.encoding, content, limits.max_body_bytes)
        return read_request(content, head.json_bytes, limits)

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        return write_response(model, query, prediction, timing)

    def reject(self, error: RequestError) -> Reply:
        return Reply(error_status(type(error)), error_body(str(error)), (JSON, *error.headers))


def error_status(kind: type[RequestError]) -> int:
    """Return the status of an error below /v2, which is 400 for every invalid input."""
    return MalformedBody.status if issubclass(kind, InvalidInput) else kind.status


def error_body(message: str) -> bytes:
    """Return the JSON document of an error below /v2."""
    return orjson.dumps({"error": message})


def _json_bytes(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the length of the JSON before the binary tensor; None without one. Raises `MalformedBody`."""
    value = headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        found = value.decode("latin-1")[:40]
        raise MalformedBody(f"Inference-Header-Content-Length is {found!r}; expected a number of bytes")
    return int(value)
