"""gRPC's standard health service, `grpc.health.v1.Health`, for orchestrators and load-balancing clients.

Its names are those of the service and of every model; the empty name is the whole server. A model is loaded before the
port is opened and never unloaded, so a status changes once: at shutdown. The official servicer is not used because its
watches never end, which would delay the shutdown by the whole grace period.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

Context = grpc.aio.ServicerContext[Any, Any]


class Health(HealthServicer):  # type: ignore[misc] # has no types
    """SERVING until `stop`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"", *names}
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Report NOT_SERVING from now on, and end all watches."""
        self._stopped.set()

    def _status(self) -> HealthCheckResponse:
        stopped = self._stopped.is_set()
        return HealthCheckResponse(status="NOT_SERVING" if stopped else "SERVING")

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        """Return the status of a name; an unknown one is the error NOT_FOUND."""
        if request.service not in self._names:
            known = ", ".join(sorted(self._names - {""}))
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r}; known: {known}"
            )
        return self._status()

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """Send the status of a name, and again when it changes; that of an unknown name is SERVICE_UNKNOWN."""
        if request.service not in self._names:
            await context.write(HealthCheckResponse(status="SERVICE_UNKNOWN"))
            await self._stopped.wait()
            return
        await context.write(self._status())
        await self._stopped.wait()
        await context.write(self._status())
