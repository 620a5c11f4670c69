"""The protocol of `POST /predict` and `POST /predict/{model}`: pictures or integers in, digits out."""

from collections.abc import Mapping
from typing import Any

import orjson

from serving.codecs.base import Protocol, Query, Reply, Request, Timing
from serving.codecs.bodies import Body, Limits, decode, decodes_quickly, media_type
from serving.codecs.decompress import content_encoding, unpack
from serving.codecs.errors import RequestError, UnknownModel, error_body
from serving.engine.batching import Prediction
from serving.engine.endpoint import Endpoint
from serving.http.app import Route, Unserved
from serving.model.repository import Manifest

PREFIX = "/predict"
_JSON = (b"content-type", b"application/json")


class Predict(Protocol):
    """What `serving.codecs.schemas` describes, written and read without it."""

    name = "rest"

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        media_type(headers.get(b"content-type", b""))
        content_encoding(headers)

    def is_quick(self, request: Request) -> bool:
        return not content_encoding(request.headers) and decodes_quickly(_body(request))

    def decode(self, request: Request, limits: Limits) -> Query:
        headers, content = request
        content = unpack(content_encoding(headers), content, limits.max_body_bytes)
        return Query(decode(_body(Request(headers, content)), limits))

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:  # noqa: ARG002
        answer: dict[str, Any] = {
            "model": model.name,
            "version": model.version,
            "predictions": [
                {"digit": digit, "probability": row[digit], "probabilities": row}
                for digit, row in zip(prediction.digits.tolist(), prediction.probabilities, strict=True)
            ],
            "timing": {
                "decode_ms": timing.decode_ms,
                "queue_ms": timing.queue_ms,
                "inference_ms": timing.inference_ms,
                "total_ms": timing.total_ms,
            },
        }
        return Reply(200, orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), (_JSON, timing.header()))

    def refuse(self, error: RequestError) -> Reply:
        return Reply(error.status, error_body(error.code, str(error)), (_JSON, *error.headers))


def _body(request: Request) -> Body:
    content_type = request.headers.get(b"content-type", b"")
    return Body(media_type(content_type), content_type, request.content)


def predict_routes(endpoints: Mapping[str, Endpoint], default: str) -> tuple[dict[str, Route], Unserved]:
    """The paths of this protocol: `/predict` for the default model, `/predict/{model}` for each."""
    protocol = Predict()
    routes = {f"{PREFIX}/{name}": Route(protocol, endpoint) for name, endpoint in endpoints.items()}
    routes[PREFIX] = Route(protocol, endpoints[default])
    known = ", ".join(endpoints)

    def owns(path: str) -> bool:
        return path.startswith(f"{PREFIX}/")

    def explain(path: str) -> RequestError:
        name = path.removeprefix(f"{PREFIX}/")[:80]
        return UnknownModel(f"there is no model {name!r}; this service has {known}")

    return routes, Unserved(protocol, owns, explain)
