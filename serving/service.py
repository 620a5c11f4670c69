"""The service: a LitServe server with one `DigitAPI` per model, and the prediction routes in front of it.

`build` assembles it. `Service.run` serves in processes of its own; `Service.app` is an ASGI application that loads
the models in its lifespan and can be mounted anywhere.

Two parts of LitServe are replaced:

- Models run in the API process by default, because LitServe's queue to its workers costs a millisecond, several
  times the run of a distilled model. `--executor workers` selects LitServe's worker processes.
- Repeated requests bypass uvicorn's parser (`serving.http.fast_path`), which costs more than such a run.
  `--no-fast-path` turns this off.
"""

import logging
import multiprocessing
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from secrets import token_bytes
from typing import Any, NamedTuple, Self

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from distillery import DistilleryError, notify
from serving.api_process import ApiProcess, log_settings
from serving.application import add_fastapi_routes
from serving.codecs.base import BodyLimits
from serving.codecs.errors import NotReady
from serving.codecs.open_inference.rest import OpenInferenceCodec
from serving.codecs.predict import PredictCodec
from serving.codecs.read import MAX_CANDIDATES, ReadCodec
from serving.config import ServiceSettings
from serving.engine.admission.admission import Admission, AdmissionLimits
from serving.engine.admission.api_keys import Access, Quotas
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.engine.metrics.series import Metrics, metrics_table
from serving.engine.models import Deployment, ServedModels
from serving.engine.recent_predictions import RecentPredictions
from serving.engine.request_log import check_log
from serving.engine.telemetry.traces import TracingSettings
from serving.engine.watched_files import WatchedFiles
from serving.grpc.port import grpc_address
from serving.health import announcement
from serving.http.connection import HttpConnection
from serving.http.fast_path import FastPathProtocol, RawHeads
from serving.http.middleware.cross_origin import CrossOrigin
from serving.http.middleware.normalise import NormalisedRequests
from serving.http.middleware.request_ids import RequestIds
from serving.http.middleware.route_metrics import ROUTES, RouteMetrics
from serving.http.middleware.security_headers import SecurityHeaders
from serving.http.prediction_routes import PredictionRoutes
from serving.model.repository import STABLE, Manifest
from serving.model.session import resolve_device
from serving.model.signature import PublicKeys
from serving.model.versions import Snapshot
from serving.processes.file_limit import raise_file_limit
from serving.processes.lifeline import Lifeline
from serving.processes.litserve import DigitServer, WorkerPaths
from serving.processes.sockets import Listeners, is_loopback
from serving.processes.supervisor import Child, can_fork
from serving.processes.tls import Certificate, Pem, watch
from serving.release.controller import Controller
from serving.release.first import first_deployment

PROTOCOLS = (PredictCodec.name, OpenInferenceCodec.name, "grpc")
"""The names of all codecs; that of gRPC is literal, because its module needs the extra `grpc`."""
PREDICTION_ROUTES = (
    PredictCodec.route,
    ReadCodec.route,
    OpenInferenceCodec.route,
    "inference.GRPCInferenceService/ModelInfer",
)
"""Of all codecs."""

SPARE_SLOTS = 16
"""Versions that can be loaded while the service runs, in addition to those of its start, with metrics of their own."""

_logger = logging.getLogger("distillery")


class Shared(NamedTuple):
    """What all processes of a service have in common, whether they are forked or spawned."""

    deployment: Deployment
    public_keys: PublicKeys | None
    metrics: Metrics
    access: Access
    certificate: WatchedFiles[Pem] | None
    recent: RecentPredictions | None

    @classmethod
    def of(cls, settings: ServiceSettings) -> Self:
        """Load and verify the repository, and allocate the rest. Raises `DistilleryError`."""
        public_keys = PublicKeys.read(settings.public_key) if settings.public_key else None
        deployment = first_deployment(settings, public_keys)
        key = settings.api_key.get_secret_value() if settings.api_key else None
        access = Access(key, settings.api_keys, Quotas(settings.api_servers))
        files = watch(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
        if log := log_settings(settings):
            check_log(log)
        return cls(
            deployment,
            public_keys,
            _metrics(settings, deployment.snapshot),
            access,
            files,
            _recent(settings) if settings.feedback else None,
        )


def _recent(settings: ServiceSettings) -> RecentPredictions:
    """Allocate the memory of feedback. Raises `SharedMemoryError`."""
    secret = None if can_fork() else token_bytes(32)
    return RecentPredictions(
        settings.api_servers, settings.feedback_requests, settings.feedback_expiry, secret=secret
    )


@dataclass(frozen=True)
class Service:
    """A service over the models of one repository."""

    settings: ServiceSettings
    model_settings: ModelSettings
    models: ServedModels
    public_keys: PublicKeys | None
    admission: Admission
    certificate: Certificate | None
    metrics: Metrics
    server: DigitServer
    routes: PredictionRoutes
    route_metrics: RouteMetrics
    cross_origin: CrossOrigin | None
    grpc_address: str | None
    tracing: TracingSettings | None
    recent: RecentPredictions | None

    @property
    def app(self) -> ASGIApp:
        """The ASGI application."""
        return self.cross_origin or self.routes

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises `ServiceError`."""

        def on_change(deployment: Deployment) -> None:
            self.models.deployment = deployment

        controller = Controller(
            self.settings, self.models.deployment, self.metrics, self.public_keys, on_change
        )
        controller.handle_hangup()

        def on_check(children: Sequence[Child]) -> None:
            self.reload()
            controller.step(children)

        with announcement() as announce:

            def on_ready(url: str) -> None:
                announce(url)
                self._print_ready(url)

            self.server.serve(
                self._start_api,
                host=self.settings.host,
                port=self.settings.port,
                api_servers=self.settings.api_servers,
                delay=self.settings.shutdown_delay,
                scheme="https" if self.certificate else "http",
                on_ready=on_ready,
                on_check=on_check,
                on_end=controller.end,
            )

    def run_api(self, index: int, listeners: Listeners, lifeline: Lifeline) -> None:
        """Run one API process."""
        self.server.run_api(
            self.app,
            index,
            listeners,
            lifeline,
            http=self.protocol(),
            keep_alive=self.settings.keep_alive,
            client_timeout=self.settings.client_timeout,
            log_level=self.settings.log_level,
            tls=self.certificate.context if self.certificate else None,
        )

    def _start_api(self, index: int, listeners: Listeners, lifeline: Lifeline) -> BaseProcess:
        name = f"API process {index}"
        process: BaseProcess
        if can_fork():
            fork = multiprocessing.get_context("fork")
            process = fork.Process(target=self.run_api, args=(index, listeners, lifeline), name=name)
        else:
            spawn = multiprocessing.get_context("spawn")
            files = self.certificate.files if self.certificate else None
            shared = Shared(
                self.models.deployment,
                self.public_keys,
                self.metrics,
                self.admission.access,
                files,
                self.recent,
            )
            args = (
                self.settings,
                self.grpc_address,
                shared,
                self.server.channels,
                index,
                listeners,
                lifeline,
            )
            process = spawn.Process(target=_run_spawned, args=args, name=name)
        process.start()
        return process

    def protocol(self) -> Any:
        """Return the protocol of an HTTP connection, to be passed to `uvicorn.Config(http=…)`."""
        if not self.settings.fast_path:
            return partial(HttpConnection, self.admission)
        headers = self.cross_origin.response_headers if self.cross_origin else lambda _: ()
        return partial(FastPathProtocol, self.admission, self.routes.find, headers, RawHeads())

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Load the models in an API process, open their routes and publish metrics."""

        def on_exchange() -> None:
            app.openapi_schema = None  # made again when it is requested

        process = ApiProcess(
            self.settings,
            self.model_settings,
            self.models,
            self.admission,
            self.metrics,
            self.server,
            self.routes,
            self.route_metrics,
            self.tracing,
            self.recent,
            self.reload,
            on_exchange,
        )
        app.state.process = process
        async with process.running(partial(self._grpc, process)):
            yield

    def reload(self) -> None:
        """Read API keys and certificate again if their files have changed.

        The parent process does so too, for the processes that it starts later, and reports errors for all of them.
        """
        for one in (self.admission.access, self.certificate):
            try:
                if one:
                    one.reload()
            except DistilleryError as error:
                if self.server.channel is None:  # not a child of the parent
                    _logger.error("%s; what was valid before remains in use", error)

    def check_ready(self) -> None:
        """Raises `NotReady` unless every model can be served and no shutdown has begun."""
        if self.server.draining:
            raise NotReady("the service is shutting down; send the request to another one")
        if not self.server.workers_ready:
            raise NotReady("a worker is being restarted; retry in a second")

    def _grpc(self, process: ApiProcess) -> AbstractAsyncContextManager[None]:
        if self.grpc_address is None:
            return nullcontext()
        from serving.grpc.server import grpc_running  # noqa: PLC0415 - gRPC's threads do not survive the fork

        return grpc_running(
            self.grpc_address,
            self.models,
            self.admission,
            self.metrics,
            process.change,
            version=version("distillery"),
            max_images=self.settings.max_images,
            max_message_bytes=self.settings.max_body_bytes,
            patience=self.settings.request_timeout,
            check_ready=self.check_ready,
            open_routes=self.settings.open_routes,
            certificate=self.certificate,
            client_timeout=self.settings.client_timeout,
        )

    def _print_ready(self, url: str) -> None:
        grpc = f" · gRPC at {self.grpc_address}" if self.grpc_address else ""
        names = ", ".join(self._describe(entry.manifest) for entry in self.models.deployment.snapshot)
        names += ", all signed" if self.settings.public_key else ""
        processes = f"{self.settings.api_servers} API processes, executor {self.settings.executor}"
        notify(f"distillery-serve: ready at {url}{grpc} · {names} · {processes} · {self._describe_access()}")

    def _describe(self, manifest: Manifest) -> str:
        default = self.models.deployment.find(STABLE) == (manifest.name, manifest.version)
        return f"{manifest.name}/{manifest.version}{' (default)' if default else ''}"

    def _describe_access(self) -> str:
        """Return what is open to whom."""
        host, access = self.settings.host, self.admission.access
        reach = "this machine only" if is_loopback(host) else "everyone who can reach it"
        if not access.required:
            return f"no API key: open to {reach}"
        keys = "1 API key" if len(access) == 1 else f"{len(access)} API keys"
        routes = self.settings.open_routes
        return f"{keys}; open to {reach}: {', '.join(routes) or 'nothing'}"


def serve(settings: ServiceSettings) -> None:
    """Build the service and run it. Raises `DistilleryError` if it cannot start."""
    _configure_logging(settings)
    raise_file_limit(settings.api_servers)
    with grpc_address(settings.host, settings.grpc_port) as address:
        build(settings, grpc_address=address).run()


def _run_spawned(
    settings: ServiceSettings,
    grpc_address: str | None,
    shared: Shared,
    channels: WorkerPaths,
    index: int,
    listeners: Listeners,
    lifeline: Lifeline,
) -> None:
    """Build the service again and run one API process, where processes cannot be forked."""
    _configure_logging(settings)
    service = build(settings, grpc_address=grpc_address, shared=shared)
    service.server.connect(channels)
    service.run_api(index, listeners, lifeline)


def _configure_logging(settings: ServiceSettings) -> None:
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # clients' errors belong in their responses


def build(
    settings: ServiceSettings,
    *,
    grpc_address: str | None = None,
    shared: Shared | None = None,
) -> Service:
    """Load and verify the repository, and assemble the service. Raises `DistilleryError`.

    `shared` is from the parent process, where the service is built again by a child.
    """
    device = resolve_device(settings.device)
    shared = shared or Shared.of(settings)
    models = ServedModels(shared.deployment)
    admission = Admission(
        AdmissionLimits(
            max_body_bytes=settings.max_body_bytes,
            max_in_flight=settings.max_in_flight,
            request_timeout=settings.request_timeout,
            client_timeout=settings.client_timeout,
        ),
        shared.access,
    )
    limits = BodyLimits(settings.max_images, settings.max_pixels, settings.max_body_bytes)
    model_settings = ModelSettings(
        limits, settings.threads, device, settings.max_batch, settings.reject_unaccepted
    )
    server = DigitServer(
        [DigitAPI(entry, model_settings) for entry in shared.deployment.snapshot],
        shared.metrics,
        workers_per_model=settings.workers_per_model if settings.executor == "workers" else 0,
        timeout=settings.request_timeout,
    )
    server.slots = shared.deployment.slots
    route_metrics = RouteMetrics(server.app)
    app = SecurityHeaders(route_metrics, tls=shared.certificate is not None)
    normalised = NormalisedRequests(app, settings.root_path, settings.trusted_proxies)
    others = RequestIds(normalised, admission)
    routes = PredictionRoutes(others, admission, models, settings.root_path)
    cross_origin = CrossOrigin(routes, settings.cors_origins) if settings.cors_origins else None
    service = Service(
        settings,
        model_settings,
        models,
        shared.public_keys,
        admission,
        Certificate(shared.certificate) if shared.certificate else None,
        shared.metrics,
        server,
        routes,
        route_metrics,
        cross_origin,
        grpc_address,
        TracingSettings.of(os.environ) if settings.tracing else None,
        shared.recent,
    )
    server.app.include_router(APIRouter(lifespan=service.lifespan))  # FastAPI runs it inside LitServe's
    add_fastapi_routes(server.app, settings, models, admission.access, shared.metrics, service.check_ready)
    return service


def _metrics(settings: ServiceSettings, snapshot: Snapshot) -> Metrics:
    """Allocate the metrics of all processes: API processes, then workers. Raises `SharedMemoryError`."""
    versions = len(list(snapshot))
    graphs = sum(entry.manifest.cascade is None for entry in snapshot)
    workers = graphs * settings.workers_per_model if settings.executor == "workers" else 0
    slots = versions + (SPARE_SLOTS if settings.executor == "inprocess" else 0)
    max_run = settings.max_batch + max(settings.max_images, MAX_CANDIDATES)  # what is queued, and one request
    return Metrics(
        metrics_table(slots, PROTOCOLS, (*PREDICTION_ROUTES, *ROUTES), max_run),
        settings.api_servers + workers + 1,  # the last row is the parent's
    )
