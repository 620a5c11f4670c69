"""gRPC's standard health service, `grpc.health.v1.Health`, for orchestrators and load-balancing clients.

Its names are those of the service and of every model; the empty name is the whole server. All have one status, that of
`/health/ready`: a model is loaded before it is served. The official servicer is not used,
because its watches never end, which would delay the shutdown by the whole grace period.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from serving.codecs.errors import NotReady

_POLL_SECONDS = 0.5

Context = grpc.aio.ServicerContext[Any, Any]


class Health(HealthServicer):
    """The status of the service and its models, NOT_SERVING after `stop`."""

    def __init__(self, names: Callable[[], Iterable[str]], check_ready: Callable[[], None]) -> None:
        """`names` returns those that are known; `check_ready` raises `NotReady` while the service is not ready."""
        self._known = names
        self._check_ready = check_ready
        self._stopped = asyncio.Event()

    @property
    def _names(self) -> set[str]:
        return {"", *self._known()}

    def stop(self) -> None:
        """Report NOT_SERVING from now on, and end all watches."""
        self._stopped.set()

    def _respond(self, name: str) -> HealthCheckResponse:
        if name not in self._names:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        try:
            self._check_ready()
        except NotReady:
            ready = False
        else:
            ready = not self._stopped.is_set()
        return HealthCheckResponse(
            status=HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        )

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        """Return the status of a name; an unknown one is the error NOT_FOUND."""
        if request.service not in self._names:
            known = ", ".join(sorted(self._names - {""}))
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r}; known: {known}"
            )
        return self._respond(request.service)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """Send the status of a name, and again whenever it changes; that of an unknown name is SERVICE_UNKNOWN."""
        sent = None
        while True:
            stopped, response = self._stopped.is_set(), self._respond(request.service)
            if response != sent:
                await context.write(response)
                sent = response
            if stopped:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), _POLL_SECONDS)
