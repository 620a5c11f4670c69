"""The prediction routes: an ASGI application in front of LitServe's FastAPI application.

Routing, dependencies and validation by FastAPI cost more than a distilled model, so predictions are served here,
whatever their codec. All other paths are passed on. `serving.http.openapi` documents these routes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.codecs.base import Codec, Head
from serving.codecs.errors import MethodNotAllowed, Overloaded, RequestError, UnknownModel
from serving.codecs.open_inference.rest import PREFIX as V2
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.predict import PREFIX as PREDICT
from serving.codecs.predict import PredictCodec
from serving.codecs.read import PREFIX as READ
from serving.codecs.read import ReadCodec
from serving.engine.admission.admission import Admission
from serving.engine.admission.pacing import STATE as PACING
from serving.engine.models import ServedModels, Split
from serving.engine.request import AwaitedRequest, ClientGoneError, Endpoint, check_backlog
from serving.engine.telemetry.correlation import REQUEST_ID, Correlation
from serving.http.middleware.normalise import route_path
from serving.model.repository import STABLE


class Route:
    """The codec of a path and the version that serves it, which a change of the models replaces."""

    __slots__ = ("_split", "codec", "endpoint", "is_open")

    def __init__(self, codec: Codec, endpoint: Endpoint, split: Split | None = None) -> None:
        self.codec = codec
        self.endpoint = endpoint
        self.is_open = True
        """Whether the path names a served version; the connections' memory of it outlasts that."""
        self._split = split

    def update(self, other: "Route") -> None:
        """Serve the path as another route of it."""
        self.endpoint, self._split, self.is_open = other.endpoint, other._split, True  # noqa: SLF001

    def choose(self, api_key: bytes, request_id: bytes) -> Endpoint:
        """Return the version that serves a request."""
        split = self._split
        return split.choose(self.endpoint, api_key, request_id) if split else self.endpoint


class UnknownRoute(NamedTuple):
    """The paths of a codec that may name a model, and the error of one that names none."""

    codec: Codec
    matches: Callable[[str], bool]
    error: Callable[[str], RequestError]


def _error_of(models: ServedModels, name: str) -> RequestError:
    """Return the error for `{model}` or `{model}/versions/{version}`, which is not served."""
    name, _, version = name.partition("/versions/")
    try:
        models.deployment.find(name, version)
    except UnknownModel as error:
        return error
    return UnknownModel(f"{name[:80]!r} is being loaded; retry")  # between two deployments


class PredictionPaths:
    """The paths that predictions are served at: one set for each codec."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._predict, self._read, self._infer = PredictCodec(), ReadCodec(), OpenInferenceCodec()
        self.unknown = (
            UnknownRoute(self._predict, *self._matching(f"{PREDICT}/", "")),
            UnknownRoute(self._read, *self._matching(f"{READ}/", "")),
            UnknownRoute(self._infer, *self._matching(f"{V2}/models/", "/infer")),
        )

    def _matching(
        self, prefix: str, suffix: str
    ) -> tuple[Callable[[str], bool], Callable[[str], RequestError]]:
        def matches(path: str) -> bool:
            return path.startswith(prefix) and path.removeprefix(prefix).endswith(suffix)

        def error(path: str) -> RequestError:
            return _error_of(self._models, path.removeprefix(prefix).removesuffix(suffix))

        return matches, error

    def routes(self) -> dict[str, Route]:
        """Return the route of every path of the present deployment."""
        models = self._models
        routes: dict[str, Route] = {}
        for (name, version), endpoint in models.endpoints.items():
            routes |= self._of(f"{name}/versions/{version}", endpoint)
        for name in models.deployment.snapshot.latest:
            routes |= self._of(name, models.find(name))
        for alias in models.deployment.aliases:
            routes |= self._of(alias, models.find(alias), models.split if alias == STABLE else None)
        for path, codec in ((PREDICT, self._predict), (READ, self._read)):
            routes[path] = Route(codec, models.find(STABLE), models.split)
        return routes

    def _of(self, name: str, endpoint: Endpoint, split: Split | None = None) -> dict[str, Route]:
        return {
            f"{PREDICT}/{name}": Route(self._predict, endpoint, split),
            f"{READ}/{name}": Route(self._read, endpoint, split),
            f"{V2}/models/{name}/infer": Route(self._infer, endpoint, split),
        }


class PredictionRoutes:
    """Serves predictions; passes all other requests, and the lifespan, on to `app`.

    `root_path` may precede a path: `serving.http.middleware.normalise`.
    """

    def __init__(self, app: ASGIApp, admission: Admission, models: ServedModels, root_path: str = "") -> None:
        self._app = app
        self._admission = admission
        self._root_path = root_path
        self._paths = PredictionPaths(models)
        self._routes: Mapping[str, Route] = {}

    def open(self) -> None:
        """Serve the models as they are now."""
        routes = self._paths.routes()
        for path, route in self._routes.items():
            if new := routes.get(path):
                route.update(new)
                routes[path] = route
            else:
                route.is_open = False
        self._routes = routes

    def find(self, path: str) -> Route | None:
        """Return the route of `path`."""
        return self._routes.get(path) or self._routes.get(route_path(path, self._root_path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        route: Route | UnknownRoute | None = self._routes.get(path)
        if route is None:
            path = route_path(path, self._root_path)
            unknown = self._paths.unknown
            route = self._routes.get(path) or next((one for one in unknown if one.matches(path)), None)
        if route is None:
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        correlation = Correlation.of(headers)
        endpoint = None
        if isinstance(route, Route):
            endpoint = route.choose(headers.get(b"x-api-key", b""), correlation.request_id)
        request = AwaitedRequest(self._admission, route.codec, endpoint, correlation)
        receiving = self._receive(request, route, endpoint, scope, headers, receive)
        reply = await request.reply(receiving, hang_up=receive)
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
        endpoint: Endpoint | None,
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
        assert endpoint  # noqa: S101 - of a route
        check_backlog(self._admission, endpoint, head, length, request.client)
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
