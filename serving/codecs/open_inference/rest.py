"""The Open Inference Protocol (KServe V2) over REST: `POST /v2/models/{model}[/versions/{version}]/infer`.

The rest of /v2 is in `serving.http.v2_routes`. Any Content-Type is read, as Triton's client sends none. Every
refusal is `{"error": "…"}`; whatever is wrong with the input is a 400.
"""

from collections.abc import Mapping

import orjson

from serving.codecs.base import Protocol, Query, Reply, Request, Timing
from serving.codecs.bodies import QUICK_BYTES, Limits
from serving.codecs.decompress import content_encoding, unpack
from serving.codecs.errors import InvalidInput, MalformedBody, RequestError, UnknownModel
from serving.codecs.open_inference.request import read_request
from serving.codecs.open_inference.response import HEADER_LENGTH, JSON, write_response
from serving.engine.batching import Prediction
from serving.engine.endpoint import Endpoint
from serving.http.app import Route, Unserved
from serving.model.repository import Manifest

PREFIX = "/v2"
_MODELS, _INFER = f"{PREFIX}/models/", "/infer"


class OpenInference(Protocol):
    """`request` reads, `response` writes, and `schemas` describes both."""

    name = "v2"

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        content_encoding(headers)
        _json_bytes(headers)

    def is_quick(self, request: Request) -> bool:
        if content_encoding(request.headers):
            return False
        json_bytes = _json_bytes(request.headers)
        return (len(request.content) if json_bytes is None else json_bytes) <= QUICK_BYTES

    def decode(self, request: Request, limits: Limits) -> Query:
        headers, content = request
        content = unpack(content_encoding(headers), content, limits.max_body_bytes)
        return read_request(content, _json_bytes(headers), limits)

    def encode(self, model: Manifest, query: Query, prediction: Prediction, timing: Timing) -> Reply:
        return write_response(model, query.wishes, prediction, timing)

    def refuse(self, error: RequestError) -> Reply:
        return Reply(error_status(type(error)), error_body(str(error)), (JSON, *error.headers))


def error_status(kind: type[RequestError]) -> int:
    """The status of a refusal below /v2, where whatever is wrong with the input is a 400."""
    return MalformedBody.status if issubclass(kind, InvalidInput) else kind.status


def error_body(message: str) -> bytes:
    """The JSON document of every refusal below /v2."""
    return orjson.dumps({"error": message})


def _json_bytes(headers: Mapping[bytes, bytes]) -> int | None:
    """How long the JSON before the binary tensors is; None when there are none. Raises `MalformedBody`."""
    value = headers.get(HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        found = value.decode("latin-1")[:40]
        raise MalformedBody(f"Inference-Header-Content-Length is {found!r}; expected a number of bytes")
    return int(value)


def open_inference_routes(endpoints: Mapping[str, Endpoint]) -> tuple[dict[str, Route], Unserved]:
    """The paths of this protocol: for each model with and without its version."""
    protocol = OpenInference()
    models = {name: endpoint.entry.manifest for name, endpoint in endpoints.items()}
    routes = {}
    for name, endpoint in endpoints.items():
        for path in (name, f"{name}/versions/{models[name].version}"):
            routes[f"{_MODELS}{path}{_INFER}"] = Route(protocol, endpoint)

    def owns(path: str) -> bool:
        return path.startswith(_MODELS) and path.removeprefix(_MODELS).endswith(_INFER)

    def explain(path: str) -> RequestError:
        name, _, version = path.removeprefix(_MODELS).removesuffix(_INFER).partition("/versions/")
        return unserved(models, name, version)

    return routes, Unserved(protocol, owns, explain)


def find_model(models: Mapping[str, Manifest], name: str, version: str | None = None) -> Manifest:
    """The model of this name, which must be served in this version if one is asked for.

    Raises `UnknownModel`.
    """
    model = models.get(name)
    if model is None or version not in {None, model.version}:
        raise unserved(models, name, version or "")
    return model


def unserved(models: Mapping[str, Manifest], name: str, version: str) -> UnknownModel:
    """What to tell who asks for a model, or a version of it, that is not served."""
    if name not in models:
        return UnknownModel(f"there is no model {name[:80]!r}; this service has {', '.join(models)}")
    return UnknownModel(
        f"there is no version {version[:80]!r} of model {name!r}; served is the highest, {models[name].version}"
    )
