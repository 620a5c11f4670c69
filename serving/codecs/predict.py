"""The codec of `POST /predict` and `POST /predict/{model}`: pictures or integers in, digits out."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import orjson

from serving.codecs.base import BodyLimits, Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.bodies import body
from serving.codecs.bodies.decompress import content_encoding, decompress
from serving.codecs.errors import InvalidInput, RequestError, error_body
from serving.codecs.timeout import timeout_of
from serving.model.repository import Manifest

PREFIX = "/predict"
_JSON = (b"content-type", b"application/json")
_FIELDS = 16  # of a query


class PredictCodec(Codec):
    """Implements the documents of `serving.codecs.schemas`, by hand because pydantic is slower than the model."""

    name = "rest"
    route = PREFIX

    def check(self, headers: Mapping[bytes, bytes], query: bytes = b"") -> Head:
        media_type, boundary = body.media_type(headers.get(b"content-type", b""))
        return Head(
            headers.get(b"x-api-key", b""),
            media_type,
            boundary,
            content_encoding(headers),
            includes_input=bool(query) and _includes_input(query),
            timeout=timeout_of(headers),
        )

    def decodes_inline(self, head: Head, content: bytes) -> bool:
        return not head.encoding and body.decodes_inline(head, content)

    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:
        content = decompress(head.encoding, content, limits.max_body_bytes)
        return Query(body.decode(head, content, limits), includes_input=head.includes_input)

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        return respond(model, {"predictions": digits_of(model, query, prediction)}, timing)

    def reject(self, error: RequestError) -> Reply:
        return Reply(error.status, error_body(error.code, str(error)), (_JSON, *error.headers))


def digits_of(model: Manifest, query: Query, prediction: Prediction) -> list[dict[str, Any]]:
    """Return the part of the response about each image."""
    unknown = (None,) * len(prediction.digits)
    digits = [
        {
            "digit": digit,
            "probability": row[digit],
            "probabilities": row,
            "confidence": confidence,
            "accepted": accepted,
        }
        for digit, row, confidence, accepted in zip(
            prediction.digits,
            prediction.probabilities,
            unknown if prediction.confidence is None else prediction.confidence,
            unknown if prediction.accepted is None else prediction.accepted,
            strict=True,
        )
    ]
    if model.cascade and prediction.escalated is not None:
        names = model.cascade.student.name, model.cascade.teacher.name
        for digit, escalated in zip(digits, prediction.escalated, strict=True):
            digit["model"] = names[escalated]
    if query.includes_input:
        for digit, image in zip(digits, query.images, strict=True):
            digit["input"] = image
    return digits


def respond(model: Manifest, results: dict[str, Any], timing: Timing) -> Reply:
    """Return the response with these results."""
    document = {
        "model": model.name,
        "version": model.version,
        **results,
        "timing": {
            "decode_ms": timing.decode_ms,
            "queue_ms": timing.queue_ms,
            "inference_ms": timing.inference_ms,
            "total_ms": timing.total_ms,
        },
    }
    content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Reply(200, content, (_JSON, timing.header()))


def _includes_input(query: bytes) -> bool:
    """Return whether the URL's query has `include=input`. Raises `InvalidInput` for another value."""
    try:
        fields = parse_qsl(query.decode("latin-1"), max_num_fields=_FIELDS)
    except ValueError:
        raise InvalidInput(f"the URL's query has more than {_FIELDS} fields") from None
    wanted = {value for name, value in fields if name == "include"}
    if unknown := wanted - {"input"}:
        raise InvalidInput(f"include is {min(unknown)[:40]!r}; expected input")
    return bool(wanted)
