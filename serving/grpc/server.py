"""`inference.GRPCInferenceService` in an API process; models, batches, limits and metrics are shared with HTTP.

Import this module in API processes only: gRPC's threads do not survive a fork. All API processes listen on the
same port with `SO_REUSEPORT`, and the kernel assigns each connection to one of them.
"""

import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Never

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from serving.codecs.base import Head
from serving.codecs.errors import InvalidInput, MalformedBody, NotReady, Overloaded, RequestError
from serving.codecs.open_inference import open_inference_pb2 as messages
from serving.codecs.open_inference.config import model_config
from serving.codecs.open_inference.grpc import GrpcCodec, describe, target
from serving.codecs.open_inference.repository import RepositoryAction, check_parameters
from serving.engine.admission.admission import Admission
from serving.engine.admission.api_keys import Scope
from serving.engine.admission.pacing import Pacing
from serving.engine.metrics.series import Metrics
from serving.engine.metrics.triton_statistics import model_statistics
from serving.engine.models import Change, ServedModels
from serving.engine.request import AwaitedRequest
from serving.engine.telemetry.correlation import REQUEST_ID, Correlation
from serving.grpc.health import Health
from serving.grpc.reflection import reflection_servicer
from serving.model.repository import Manifest
from serving.processes.tls import Certificate

SERVICE = "inference.GRPCInferenceService"

EXTENSIONS = ("model_configuration", "model_repository", "statistics")
"""Triton's names of the extensions."""

_PINGS = (
    # Clients ping idle connections every 10 to 30 s, to notice that one is dead. gRPC's default tolerates a ping every
    # five minutes, and closes the connection at the third one (GOAWAY, too_many_pings).
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_CODEC = GrpcCodec()
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself for a message over the limit
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def grpc_running(
    address: str,
    models: ServedModels,
    admission: Admission,
    metrics: Metrics,
    change: Change,
    *,
    version: str,
    max_images: int,
    max_message_bytes: int,
    patience: float,
    check_ready: Callable[[], None],
    open_routes: Collection[str],
    certificate: Certificate | None,
    client_timeout: float,
) -> AsyncIterator[None]:
    """Listen on `address`; at shutdown, calls in flight have `patience` seconds to finish.

    `check_ready` raises `NotReady` while the service is not ready; `change` has the parent process change the models. A
    connection must be established within `client_timeout` seconds; with a `certificate`, over TLS.
    """
    server = grpc.aio.server(
        interceptors=_interceptors(admission, open_routes),
        options=(
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.server_handshake_timeout_ms", max(1, int(client_timeout * 1000))),
            *_PINGS,
        ),
    )
    service = _Service(models, admission, metrics, change, version, max_images, check_ready, open_routes)
    health = Health(lambda: (SERVICE, *models.deployment.names), check_ready)
    server.add_generic_rpc_handlers((service,))
    add_HealthServicer_to_server(health, server)
    reflection = reflection_servicer(SERVICE, service.methods)
    add_ServerReflectionServicer_to_server(reflection, server)  # type: ignore[no-untyped-call]
    if certificate:
        server.add_secure_port(address, _credentials(certificate))
    else:
        server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        health.stop()
        await server.stop(patience)


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return credentials that use the newest certificate for every new connection."""
    sent = certificate.files.value

    def newest() -> Any:
        nonlocal sent
        if certificate.files.value is sent:
            return None  # as before
        sent = certificate.files.value
        return configuration()

    def configuration() -> Any:
        return grpc.ssl_server_certificate_configuration([(sent.key, sent.chain)])

    return grpc.dynamic_ssl_server_credentials(configuration(), newest)


class _Service(grpc.GenericRpcHandler):
    """The methods of the service; gRPC itself replies UNIMPLEMENTED to all others."""

    def __init__(
        self,
        models: ServedModels,
        admission: Admission,
        metrics: Metrics,
        change: Change,
        version: str,
        max_images: int,
        check_ready: Callable[[], None],
        open_routes: Collection[str],
    ) -> None:
        self._models = models
        self._change = change
        self._admission = admission
        self._metrics = metrics
        self._max_images = max_images
        self._check_ready = check_ready
        self._open_routes = open_routes
        live = messages.ServerLiveResponse(live=True)
        server = messages.ServerMetadataResponse(name="distillery", version=version, extensions=EXTENSIONS)
        handlers = {
            # As a stream of one message, a call can be rejected before its message is read.
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            "ServerLive": self._unary(messages.ServerLiveRequest, lambda _: live, "health"),
            "ServerReady": self._unary(messages.ServerReadyRequest, self._server_ready, "health"),
            "ServerMetadata": self._unary(messages.ServerMetadataRequest, lambda _: server),
            "ModelReady": self._unary(messages.ModelReadyRequest, self._model_ready),
            "ModelMetadata": self._unary(messages.ModelMetadataRequest, self._model_metadata),
            "ModelConfig": self._unary(messages.ModelConfigRequest, self._model_config),
            "ModelStatistics": self._unary(messages.ModelStatisticsRequest, self._model_statistics),
            "RepositoryIndex": self._unary(messages.RepositoryIndexRequest, self._repository_index),
            "RepositoryModelLoad": self._changing(messages.RepositoryModelLoadRequest, "load"),
            "RepositoryModelUnload": self._changing(messages.RepositoryModelUnloadRequest, "unload"),
        }
        self._handlers = {f"/{SERVICE}/{name}": handler for name, handler in handlers.items()}
        self.methods = tuple(handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)

    async def _infer(self, _: Any, context: Context) -> bytes:
        headers = _metadata(context)
        request = AwaitedRequest(self._admission, _CODEC, correlation=Correlation.of(headers))
        # gRPC cancels the task at a hang-up.
        reply = await request.reply(self._receive(request, context, headers))
        assert reply  # noqa: S101
        fields = (*reply.headers, (REQUEST_ID, request.id))
        context.set_trailing_metadata([(name.decode(), value.decode()) for name, value in fields])
        if reply.status == Overloaded.status:
            await Pacing(self._admission.rejections).wait()
        if reply.status != 200:
            await _abort(context, reply.status, reply.content.decode())
        return reply.content

    async def _receive(
        self, request: AwaitedRequest, context: Context, headers: Mapping[bytes, bytes]
    ) -> tuple[Head, bytes]:
        timeout = context.time_remaining()
        head = _CODEC.check(headers)._replace(timeout=math.inf if timeout is None else timeout)
        request.check(head.api_key, 0)
        content = await context.read()
        if content is grpc.aio.EOF:  # also after gRPC itself has rejected a message over the limit
            raise MalformedBody("the call has no message; expected a ModelInferRequest")
        self._admission.hold(request, len(content))
        name, number = target(content)
        request.assign(self._models.choose(name, number, head.api_key, request.correlation.request_id))
        return head, content

    def _server_ready(self, _: messages.ServerReadyRequest) -> Message:
        try:
            self._check_ready()
        except NotReady:
            return messages.ServerReadyResponse(ready=False)
        return messages.ServerReadyResponse(ready=True)

    def _model_ready(self, request: messages.ModelReadyRequest) -> Message:
        self._find(request.name, request.version)
        return messages.ModelReadyResponse(ready=True)

    def _model_metadata(self, request: messages.ModelMetadataRequest) -> Message:
        model = self._find(request.name, request.version)
        return describe(model, list(self._models.deployment.snapshot.versions[model.name]))

    def _model_config(self, request: messages.ModelConfigRequest) -> Message:
        model = self._find(request.name, request.version)
        policy = self._models.deployment.snapshot.policies[model.name]
        config = model_config(model, policy, self._max_images)
        return ParseDict({"config": config}, messages.ModelConfigResponse())

    def _model_statistics(self, request: messages.ModelStatisticsRequest) -> Message:
        deployment = self._models.deployment
        if request.version or request.name not in deployment.snapshot.manifests:
            chosen = [self._find(request.name, request.version)] if request.name else None
        else:
            chosen = list(deployment.snapshot.manifests[request.name].values())
        manifests = [entry.manifest for entry in deployment.snapshot] if chosen is None else chosen
        statistics = model_statistics(self._metrics, deployment.slots, manifests)
        return ParseDict(statistics.model_dump(), messages.ModelStatisticsResponse())

    def _repository_index(self, request: messages.RepositoryIndexRequest) -> Message:
        _check_repository(request.repository_name)
        entry = messages.RepositoryIndexResponse.ModelIndex
        return messages.RepositoryIndexResponse(
            models=[
                entry(name=one.name, version=one.version, state=one.state, reason=one.reason)
                for one in self._models.deployment.index()
                if one.state == "READY" or not request.ready
            ]
        )

    def _find(self, name: str, version: str) -> Manifest:
        return self._models.deployment.manifest(name, version)

    def _changing(self, request: type[Message], action: RepositoryAction) -> Any:
        """Return the handler of a method that changes what is served, for administrators."""

        async def handle(message: Any, context: Context) -> bytes:
            try:
                self._admission.access.check_admin(_CODEC.check(_metadata(context)).api_key)
                _check_repository(message.repository_name)
                check_parameters(action, _parameters(message))
                await self._change(action, model=message.model_name)
            except RequestError as error:
                await _abort(context, error.status, str(error))
            return b""  # both responses are empty messages

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString)

    def _unary(self, request: type[Message], respond: Callable[[Any], Message], route: str = "models") -> Any:
        """Return the handler of a method that runs no model; it requires a key unless `route` is open."""
        public = route in self._open_routes
        scope: Scope | None = None if route == "health" else "infer"

        async def handle(message: Message, context: Context) -> bytes:
            try:
                if not public:
                    self._admission.access.check(_CODEC.check(_metadata(context)).api_key, scope)
                return respond(message).SerializeToString()
            except RequestError as error:
                await _abort(context, error.status, str(error))

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString)


def _check_repository(name: str) -> None:
    """Raises `InvalidInput` for a repository other than the one of the service, which has no name."""
    if name:
        raise InvalidInput(f"repository_name is {name[:80]!r}; leave it empty: there is one repository")


def _parameters(message: Any) -> dict[str, object]:
    """Return the values of a change's parameters; None is one without a value."""
    found: dict[str, object] = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice else None
    return found


class _KeyRequired(grpc.aio.ServerInterceptor):
    """Requires an API key for the standard services whose names begin with `prefix`."""

    def __init__(self, admission: Admission, prefix: str, scope: Scope | None) -> None:
        self._admission, self._prefix, self._scope = admission, prefix, scope

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(self._prefix):
            try:
                head = _CODEC.check(_headers(handler_call_details.invocation_metadata))
                self._admission.access.check(head.api_key, self._scope)
            except RequestError as error:
                status, message = error.status, str(error)

                async def reject(_: Any, context: Context) -> None:
                    await _abort(context, status, message)

                return grpc.stream_stream_rpc_method_handler(reject)  # whatever the method is
        return await continuation(handler_call_details)


def _interceptors(admission: Admission, open_routes: Collection[str]) -> list[_KeyRequired]:
    """Return the interceptors of the routes that are not open: none by default, as each costs time per call."""
    interceptors = []
    if "health" not in open_routes:
        interceptors.append(_KeyRequired(admission, "/grpc.health.", None))
    if "docs" not in open_routes:
        interceptors.append(_KeyRequired(admission, "/grpc.reflection.", "infer"))
    return interceptors


def _metadata(context: Context) -> dict[bytes, bytes]:
    """Return the metadata of a call in the form of HTTP headers."""
    return _headers(context.invocation_metadata())


def _headers(metadata: Any) -> dict[bytes, bytes]:
    return {
        name.encode(): value.encode() if isinstance(value, str) else value for name, value in metadata or ()
    }


async def _abort(context: Context, status: int, message: str) -> Never:
    await context.abort(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), message)
    raise AssertionError  # abort always raises
