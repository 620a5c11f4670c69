"""`inference.GRPCInferenceService` in an API process, beside HTTP: the same models, batches, bounds and counts.

Import it in the child only: gRPC's threads do not survive a fork. Every API process listens on the same port by
`SO_REUSEPORT`, and the kernel gives each connection to one of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Never

import grpc
from google.protobuf.message import Message

from serving.codecs.base import Reply, Request
from serving.codecs.errors import MalformedBody, RequestError
from serving.codecs.open_inference import open_inference_pb2 as messages
from serving.codecs.open_inference.grpc import GrpcInference, describe, target
from serving.codecs.open_inference.rest import find_model
from serving.engine.admission import CLIENT_GONE, Admission, Flight
from serving.engine.endpoint import Endpoint
from serving.model.repository import Manifest

SERVICE = "inference.GRPCInferenceService"

_PROTOCOL = GrpcInference()
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # what gRPC itself says of a message over the limit
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def grpc_running(
    address: str,
    endpoints: Mapping[str, Endpoint],
    admission: Admission,
    *,
    version: str,
    max_message_bytes: int,
    patience: float,
) -> AsyncIterator[None]:
    """Listen on `address`; at the end, calls under way have `patience` seconds to be answered."""
    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 1), ("grpc.max_receive_message_length", max_message_bytes))
    )
    server.add_generic_rpc_handlers((_Service(endpoints, admission, version),))
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(patience)


class _Service(grpc.GenericRpcHandler):
    """What answers each method; gRPC itself answers UNIMPLEMENTED to all others."""

    def __init__(self, endpoints: Mapping[str, Endpoint], admission: Admission, version: str) -> None:
        self._endpoints = endpoints
        self._models = {name: endpoint.entry.manifest for name, endpoint in endpoints.items()}
        self._admission = admission
        live, ready = messages.ServerLiveResponse(live=True), messages.ServerReadyResponse(ready=True)
        server = messages.ServerMetadataResponse(name="distillery", version=version)
        handlers = {
            # As a stream of one message, a call can be refused before its message is read.
            "ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            "ServerLive": self._question(messages.ServerLiveRequest, lambda _: live, open_to_all=True),
            # Nobody listens before the models are loaded.
            "ServerReady": self._question(messages.ServerReadyRequest, lambda _: ready, open_to_all=True),
            "ServerMetadata": self._question(messages.ServerMetadataRequest, lambda _: server),
            "ModelReady": self._question(messages.ModelReadyRequest, self._model_ready),
            "ModelMetadata": self._question(messages.ModelMetadataRequest, self._model_metadata),
        }
        self._handlers = {f"/{SERVICE}/{name}": handler for name, handler in handlers.items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)

    async def _infer(self, _: Any, context: Context) -> bytes:
        task = asyncio.current_task()
        assert task  # noqa: S101 - gRPC gives every call its own
        flight = self._admission.begin(_PROTOCOL, None, task.cancel)
        status = CLIENT_GONE
        try:
            reply = await self._admission.answer(flight, self._predict(flight, context))
            status = reply.status
        finally:
            self._admission.end(flight, status)
        if status != 200:
            await _refuse(context, status, reply.content.decode())
        context.set_trailing_metadata([(name.decode(), value.decode()) for name, value in reply.headers])
        return reply.content

    async def _predict(self, flight: Flight, context: Context) -> Reply:
        self._admission.check(_key(context), 0)
        content = await context.read()
        if content is grpc.aio.EOF:  # also where gRPC itself has refused a message over the limit
            raise MalformedBody("the call carries no message; expected a ModelInferRequest")
        self._admission.hold(flight, len(content))
        flight.received = received = time.monotonic()
        name, version = target(content)
        endpoint = self._endpoints[self._find(name, version).name]
        self._admission.assign(flight, endpoint)
        return await endpoint.answer(_PROTOCOL, Request({}, content), received, _cancelled)

    def _model_ready(self, request: messages.ModelReadyRequest) -> Message:
        self._find(request.name, request.version)
        return messages.ModelReadyResponse(ready=True)

    def _model_metadata(self, request: messages.ModelMetadataRequest) -> Message:
        return describe(self._find(request.name, request.version))

    def _find(self, name: str, version: str) -> Manifest:
        return find_model(self._models, name, version or None)

    def _question(
        self, request: type[Message], answer: Callable[[Any], Message], *, open_to_all: bool = False
    ) -> Any:
        """A method that is answered at once; without `open_to_all`, to those who have the key."""

        async def handle(message: Message, context: Context) -> bytes:
            try:
                if not open_to_all:
                    self._admission.check(_key(context), 0)
                return answer(message).SerializeToString()
            except RequestError as error:
                await _refuse(context, error.status, str(error))

        return grpc.unary_unary_rpc_method_handler(handle, request.FromString)


def _key(context: Context) -> bytes:
    for name, value in context.invocation_metadata() or ():
        if name == "x-api-key":
            return value.encode() if isinstance(value, str) else value
    return b""


async def _refuse(context: Context, status: int, message: str) -> Never:
    await context.abort(_CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), message)
    raise AssertionError  # abort never returns


async def _cancelled() -> None:
    """Wait for nothing: the task of a client that hangs up is cancelled, so there is no other sign of it."""
    await asyncio.get_running_loop().create_future()
