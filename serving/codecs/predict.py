"""The codec of `POST /predict` and `POST /predict/{model}`: pictures or integers in, digits out."""

from collections.abc import Mapping
from typing import Any

import orjson

from serving.codecs import bodies
from serving.codecs.base import BodyLimits, Codec, Head, Prediction, Query, Reply, Timing
from serving.codecs.decompress import content_encoding, decompress
from serving.codecs.errors import RequestError, error_body
from serving.model.repository import Manifest

PREFIX = "/predict"
_JSON = (b"content-type", b"application/json")


class PredictCodec(Codec):
    """Implements the documents of `serving.codecs.schemas`, by hand because pydantic is slower than the model."""

    name = "rest"

    def check(self, headers: Mapping[bytes, bytes]) -> Head:
        media_type, boundary = bodies.media_type(headers.get(b"content-type", b""))
        return Head(headers.get(b"x-api-key", b""), media_type, boundary, content_encoding(headers))

    def decodes_inline(self, head: Head, content: bytes) -> bool:
        return not head.encoding and bodies.decodes_inline(head, content)

    def decode(self, head: Head, content: bytes, limits: BodyLimits) -> Query:
        content = decompress(head.encoding, content, limits.max_body_bytes)
        return Query(bodies.decode(head, content, limits))

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:  # noqa: ARG002
        digits = prediction.digits.tolist()
        document: dict[str, Any] = {
            "model": model.name,
            "version": model.version,
            "predictions": [
                {
                    "digit": digit,
                    "probability": row[digit],
                    "probabilities": row,
                    "confidence": confidence,
                    "accepted": accepted,
                }
                for digit, row, confidence, accepted in zip(
                    digits,
                    prediction.probabilities,
                    [None] * len(digits) if prediction.confidence is None else prediction.confidence,
                    [None] * len(digits) if prediction.accepted is None else prediction.accepted.tolist(),
                    strict=True,
                )
            ],
            "timing": {
                "decode_ms": timing.decode_ms,
                "queue_ms": timing.queue_ms,
                "inference_ms": timing.inference_ms,
                "total_ms": timing.total_ms,
            },
        }
        content = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        return Reply(200, content, (_JSON, timing.header()))

    def reject(self, error: RequestError) -> Reply:
        return Reply(error.status, error_body(error.code, str(error)), (_JSON, *error.headers))
