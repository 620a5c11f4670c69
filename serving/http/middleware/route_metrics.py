"""Count and duration of the requests of every route but predictions, for which `serving.engine.request` does both."""

import time
from bisect import bisect_left

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine.metrics.series import (
    ROUTE_REQUEST_SECONDS,
    ROUTE_REQUESTS,
    ROUTE_SECONDS,
    UNKNOWN_ROUTE,
    Values,
    status_class,
)

ROUTES = (
    "/",
    "/page/{name}",
    "/page/service.json",
    "/docs",
    "/docs/{name}",
    "/openapi.json",
    "/models",
    "/models/{model}",
    "/models/{model}/card",
    "/release",
    "/release/promote",
    "/release/rollback",
    "/feedback",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/config",
    "/v2/models/{model}/stats",
    "/v2/models/stats",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
)
"""The templates of FastAPI's routes. A version in the path makes no label of its own."""


def route_label(scope: Scope) -> str:
    """Return the label of a request that FastAPI has routed: the template of its path."""
    template: str | None = getattr(scope.get("route"), "path", None)
    label = (template or "").replace("/versions/{version}", "")
    return label if label in ROUTES else UNKNOWN_ROUTE


class RouteMetrics:
    """Middleware next to `app`, a FastAPI application, and the recorder of what it observes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._observed: list[tuple[str, int, float]] = []  # since the last `publish`: a tenth of a second
        self._row: Values | None = None

    def open(self, row: Values) -> None:
        """Start to record, in an API process."""
        self._row = row

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._row is None:
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def send_and_observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_observe)
        finally:
            self._observed.append((route_label(scope), status, time.monotonic() - began))

    def publish(self) -> None:
        """Write what was observed since the last call to the shared metrics."""
        observed, self._observed = self._observed, []
        row = self._row
        if row is None:
            return
        for route, status, seconds in observed:
            requests = row.of(ROUTE_REQUESTS, route=route, status=status_class(status))
            requests += 1
            durations = row.of(ROUTE_REQUEST_SECONDS, route=route)
            durations[bisect_left(ROUTE_SECONDS, seconds)] += 1
            durations[-1] += seconds
