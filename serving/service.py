"""Put the service together: repository, models, routes, server."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import version

from distillery import DistilleryError
from serving.codecs.bodies import Limits
from serving.codecs.open_inference.rest import open_inference_routes
from serving.codecs.predict import predict_routes
from serving.config import ServiceSettings
from serving.engine.admission import Admission, Bounds
from serving.engine.endpoint import Endpoint
from serving.engine.executors import Executor, InProcess, Workers
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.engine.recorder import CpuMetrics, RequestMetrics, RunMetrics
from serving.grpc.port import grpc_address
from serving.http.app import Front
from serving.http.fast_path import DirectProtocol
from serving.http.openapi import describe_predictions
from serving.http.routes import add_routes, key_guard
from serving.http.v2_openapi import describe_inference
from serving.http.v2_routes import add_v2_routes
from serving.http.v2_statistics import add_statistics_routes
from serving.model.repository import load_repository
from serving.model.session import check_device
from serving.processes.litserve import DigitServer

_PREFERRED = ("student-int8", "student")
_HOUSEKEEPING_SECONDS = 0.1
_DECODERS = 2


class UnknownDefaultError(DistilleryError):
    """The default model is not in the repository."""


def choose_default(models: Iterable[str], wanted: str | None) -> str:
    """The model that answers `POST /predict`. Raises `UnknownDefaultError`."""
    names = list(models)
    if wanted is None:
        return next((name for name in _PREFERRED if name in names), names[0])
    if wanted not in names:
        raise UnknownDefaultError(f"--default-model {wanted}: the repository has {', '.join(names)}")
    return wanted


def serve(settings: ServiceSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `DistilleryError` when the service cannot start."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's mistakes go into its answer
    check_device(settings.device)
    models = load_repository(settings.models_dir)
    default = choose_default(models, settings.default_model)
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    model_settings = ModelSettings(
        Limits(settings.max_images, settings.max_pixels, settings.max_body_bytes),
        settings.threads,
        settings.device,
        settings.max_batch,
    )
    apis = [DigitAPI(entry, model_settings) for entry in models.values()]
    workers = settings.workers_per_model if settings.executor == "workers" else 0

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        """In an API process, after the fork: give every model an executor and open its route."""
        with ThreadPoolExecutor(1, "runs") as runner, ThreadPoolExecutor(_DECODERS, "decodes") as decoders:
            endpoints = {}
            for api in apis:
                executor: Executor = (
                    Workers(api, server.ask_worker, lanes=workers) if workers else InProcess(api, runner)
                )
                endpoints[api.entry.name] = Endpoint(api, executor, decoders)
            predict, no_predict = predict_routes(endpoints, default)
            infer, no_infer = open_inference_routes(endpoints)
            front.open(predict | infer, no_predict, no_infer)
            metrics: list[RequestMetrics | RunMetrics | CpuMetrics] = [CpuMetrics("api")]
            metrics += [endpoint.metrics for endpoint in endpoints.values()]
            if not workers:
                metrics += [api.metrics for api in apis]
            keeper = asyncio.create_task(_keep_house(admission, metrics))
            async with _also_grpc(address, endpoints, admission, settings) if address else nullcontext():
                yield
            keeper.cancel()
            for one in metrics:
                one.publish()

    server = DigitServer(
        apis, workers_per_model=workers, timeout=settings.request_timeout, models_running=running
    )
    server.app.title = "Distillery"
    server.app.version = version("distillery")
    server.app.description = (
        "Handwritten digits, classified by a teacher and by the students distilled from it."
    )
    guard = key_guard(api_key)
    add_statistics_routes(server.app, models, guard)
    add_routes(server.app, models, default, guard)
    add_v2_routes(server.app, models, guard, max_images=settings.max_images)
    describe_inference(server.app, models, guarded=api_key is not None)
    describe_predictions(server.app, models, default, guarded=api_key is not None)
    admission = Admission(
        Bounds(
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            request_timeout=settings.request_timeout,
            api_key=api_key,
        )
    )
    front = Front(server.app, admission)

    def announce(url: str) -> None:
        names = ", ".join(f"{name} (default)" if name == default else name for name in models)
        how = f"{settings.api_servers} API processes, executor {settings.executor}"
        grpc = f" · gRPC at {address}" if address else ""
        print(f"distillery-serve: ready at {url}{grpc} · {names} · {how}", flush=True)

    with grpc_address(settings.host, settings.grpc_port) as address:
        server.serve(
            front,
            http=partial(DirectProtocol, front, admission),
            host=settings.host,
            port=settings.port,
            api_servers=settings.api_servers,
            log_level=settings.log_level,
            on_ready=announce,
        )


def _also_grpc(
    address: str, endpoints: Mapping[str, Endpoint], admission: Admission, settings: ServiceSettings
) -> AbstractAsyncContextManager[None]:
    from serving.grpc.server import grpc_running  # noqa: PLC0415 - gRPC does not survive a fork: not before it

    return grpc_running(
        address,
        endpoints,
        admission,
        version=version("distillery"),
        max_message_bytes=settings.max_body_bytes,
        patience=settings.request_timeout,
    )


async def _keep_house(
    admission: Admission, metrics: Collection[RequestMetrics | RunMetrics | CpuMetrics]
) -> None:
    """Do now and then what would cost too much at every request."""
    while True:
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        admission.cancel_late()
        for one in metrics:
            one.publish()
