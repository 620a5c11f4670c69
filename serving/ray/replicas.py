"""The service's ASGI application inside the replicas of Ray Serve.

    serve run serving.ray.replicas:app models_dir=/models replicas=4

A replica is an API process of the service without its connections: admission, codecs, batching and models are the
same code. Ray Serve's HAProxy and uvicorn replace the fast path and the supervisor.
"""

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.engine.telemetry.correlation import REQUEST_ID
from serving.ray.settings import ReplicaSettings
from serving.service import build


class Replica:
    """An API process; Ray Serve runs its lifespan, which loads the models."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application. Raises `DistilleryError`."""
        return without_request_id(build(self._settings).app)


def app(settings: ReplicaSettings) -> serve.Application:
    """Build the application for `serve run`."""
    replica = serve.deployment(
        name="replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_in_flight,  # the service rejects what is beyond, with its own message
        graceful_shutdown_timeout_s=settings.request_timeout,
        ray_actor_options={"num_cpus": 1},
    )(serve.ingress()(Replica))
    return replica.bind(settings.model_copy(update={"api_servers": 1}))


def without_request_id(app: ASGIApp) -> ASGIApp:
    """Return an application that sends no X-Request-ID: Ray Serve adds it, with the id that it gave the request."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [field for field in message["headers"] if field[0] != REQUEST_ID]
            await send(message)

        await app(scope, receive, send_without if scope["type"] == "http" else send)

    return call
