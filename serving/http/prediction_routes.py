"""The prediction routes: an ASGI application in front of LitServe's FastAPI application.

Routing, dependencies and validation by FastAPI cost more than a distilled model, so predictions are served here,
whatever their codec. All other paths are passed on. `serving.http.openapi` documents these routes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.codecs.base import Codec, Head
from serving.codecs.errors import MethodNotAllowed, Overloaded, RequestError, unknown_model
from serving.codecs.open_inference.rest import PREFIX as V2
from serving.codecs.open_inference.rest import OpenInferenceCodec, not_served
from serving.codecs.predict import PREFIX as PREDICT
from serving.codecs.predict import PredictCodec
from serving.codecs.read import PREFIX as READ
from serving.codecs.read import ReadCodec
from serving.engine.admission.admission import Admission
from serving.engine.admission.pacing import STATE as PACING
from serving.engine.request import AwaitedRequest, ClientGoneError, Endpoint, check_backlog
from serving.engine.telemetry.correlation import REQUEST_ID, Correlation
from serving.http.middleware.normalise import route_path


class Route(NamedTuple):
    """The codec and the model of a path."""

    codec: Codec
    endpoint: Endpoint


class UnknownRoute(NamedTuple):
    """The paths of a codec that name no served model, and their error."""

    codec: Codec
    matches: Callable[[str], bool]
    error: Callable[[str], RequestError]


def routes_below(
    path: str, codec: Codec, endpoints: Mapping[str, Endpoint], default: str
) -> tuple[dict[str, Route], UnknownRoute]:
    """Return the routes `path`, for the model `default`, and `path/{model}`."""
    prefix = f"{path}/"
    routes = {f"{prefix}{name}": Route(codec, endpoint) for name, endpoint in endpoints.items()}
    routes[path] = Route(codec, endpoints[default])

    def matches(path: str) -> bool:
        return path.startswith(prefix)

    def error(path: str) -> RequestError:
        return unknown_model(path.removeprefix(prefix), endpoints)

    return routes, UnknownRoute(codec, matches, error)


def open_inference_routes(endpoints: Mapping[str, Endpoint]) -> tuple[dict[str, Route], UnknownRoute]:
    """Return the routes `/v2/models/{model}[/versions/{version}]/infer`."""
    codec = OpenInferenceCodec()
    prefix, suffix = f"{V2}/models/", "/infer"
    models = {name: endpoint.api.entry.manifest for name, endpoint in endpoints.items()}
    routes = {}
    for name, endpoint in endpoints.items():
        for path in (name, f"{name}/versions/{models[name].version}"):
            routes[f"{prefix}{path}{suffix}"] = Route(codec, endpoint)

    def matches(path: str) -> bool:
        return path.startswith(prefix) and path.removeprefix(prefix).endswith(suffix)

    def error(path: str) -> RequestError:
        name, _, version = path.removeprefix(prefix).removesuffix(suffix).partition("/versions/")
        return not_served(models, name, version)

    return routes, UnknownRoute(codec, matches, error)


class PredictionRoutes:
    """Serves predictions; passes all other requests, and the lifespan, on to `app`.

    `root_path` may precede a path: `serving.http.middleware.normalise`.
    """

    def __init__(self, app: ASGIApp, admission: Admission, root_path: str = "") -> None:
        self._app = app
        self._admission = admission
        self._root_path = root_path
        self._routes: Mapping[str, Route] = {}
        self._unknown: tuple[UnknownRoute, ...] = ()

    def open(self, endpoints: Mapping[str, Endpoint], default: str) -> None:
        """Start serving these models; `default` is the model of `/predict` and `/read`."""
        predict, unknown_predict = routes_below(PREDICT, PredictCodec(), endpoints, default)
        read, unknown_read = routes_below(READ, ReadCodec(), endpoints, default)
        infer, unknown_infer = open_inference_routes(endpoints)
        self._routes = predict | read | infer
        self._unknown = unknown_predict, unknown_read, unknown_infer

    def find(self, path: str) -> Route | None:
        """Return the route of `path`."""
        return self._routes.get(path) or self._routes.get(route_path(path, self._root_path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        route: Route | UnknownRoute | None = self._routes.get(path)
        if route is None:
            path = route_path(path, self._root_path)
            route = self._routes.get(path) or next((one for one in self._unknown if one.matches(path)), None)
        if route is None:
            await self._app(scope, receive, send)
            return
        endpoint = route.endpoint if isinstance(route, Route) else None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request = AwaitedRequest(self._admission, route.codec, endpoint, Correlation.of(headers))
        reply = await request.reply(self._receive(request, route, scope, headers, receive), hang_up=receive)
        if reply:
            if reply.status == Overloaded.status and (pacing := scope.get("state", {}).get(PACING)):
                await pacing.wait()
            fields = (b"content-length", b"%d" % len(reply.content)), *reply.headers, (REQUEST_ID, request.id)
            await send({"type": "http.response.start", "status": reply.status, "headers": fields})
            await send({"type": "http.response.body", "body": reply.content})

    async def _receive(
        self,
        request: AwaitedRequest,
        route: Route | UnknownRoute,
        scope: Scope,
        headers: Mapping[bytes, bytes],
        receive: Receive,
    ) -> tuple[Head, bytes]:
        """Check the headers, then read the body, in one piece or several."""
        length = int(headers.get(b"content-length", 0))
        request.check(headers.get(b"x-api-key", b""), length)
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"found {scope['method']}; expected POST")
        head = route.codec.check(headers, scope["query_string"])
        if isinstance(route, UnknownRoute):
            raise route.error(route_path(scope["path"], self._root_path))
        check_backlog(self._admission, route.endpoint, head, length, request.client)
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message["body"]  # the usual case
            self._admission.check_length(len(body))
            return head, body
        pieces = bytearray()
        while message["type"] == "http.request":
            pieces += message["body"]
            self._admission.hold(request, len(pieces))
            if not message.get("more_body"):
                return head, bytes(pieces)
            message = await receive()
        raise ClientGoneError
