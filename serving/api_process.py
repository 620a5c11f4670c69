"""What runs in an API process: its endpoints, its periodic work, and its part in a change of the models.

A change comes from the parent process (`serving.release.controller`) in two steps, so that all processes make it or
none does: `Prepare` has the endpoints opened next to those in use, `Commit` exchanges them between two batches.
"""

import asyncio
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from distillery import DistilleryError
from serving.codecs.errors import InvalidInput, NotReady, RequestError, UnknownModel
from serving.config import ServiceSettings
from serving.engine.admission.admission import Admission
from serving.engine.agreement import Agreement
from serving.engine.cascade import CascadeExecutor
from serving.engine.decoding_threads import Decoders
from serving.engine.executors import Executor, InProcess, Workers
from serving.engine.feedback import Feedback
from serving.engine.lit_api import DigitAPI, ModelSettings
from serving.engine.metrics.exemplars import ExemplarRecorder
from serving.engine.metrics.recorder import (
    LoopMetrics,
    ProcessMetrics,
    QueueMetrics,
    RejectionMetrics,
    RequestMetrics,
    RunMetrics,
    UnknownModelMetrics,
)
from serving.engine.metrics.series import TEACHER, Metrics
from serving.engine.models import Deployment, Endpoints, ServedModels
from serving.engine.recent_predictions import RecentPredictions
from serving.engine.request import Endpoint
from serving.engine.request_log import LogSettings, RequestLog
from serving.engine.shadow import Shadow
from serving.engine.telemetry.access_log import AccessLog
from serving.engine.telemetry.traces import Traces, TracingSettings, open_traces
from serving.http.middleware.route_metrics import RouteMetrics
from serving.http.prediction_routes import PredictionRoutes
from serving.model.repository import CANDIDATE, STABLE, ModelEntry
from serving.processes.channel import Attached
from serving.processes.litserve import DigitServer
from serving.processes.messages import Abort, Asked, Commit, Failed, Prepare, Prepared, Result, Serving
from serving.processes.supervisor import HANG_SECONDS

_TICK_SECONDS = 0.1
_DECODERS = 2
_CHANGE_SECONDS = 150.0
"""For the parent process to make a change that a client has asked for: longer than trial and preparation may take."""
_MAX_REASON = 2000
"""Characters."""

_logger = logging.getLogger("distillery")


class Recorder(Protocol):
    """What publishes values that it has recorded."""

    def publish(self) -> None:
        """Write the values recorded since the last call to the metrics shared by all processes."""


@dataclass
class _Pending:
    """A change that is prepared, but not committed."""

    deployment: Deployment
    endpoints: Endpoints


class ApiProcess:
    """The state of one API process while it serves; made after the fork."""

    def __init__(
        self,
        settings: ServiceSettings,
        model_settings: ModelSettings,
        models: ServedModels,
        admission: Admission,
        metrics: Metrics,
        server: DigitServer,
        routes: PredictionRoutes,
        route_metrics: RouteMetrics,
        tracing: TracingSettings | None,
        recent: RecentPredictions | None,
        reload: Callable[[], None],
        on_exchange: Callable[[], None],
    ) -> None:
        """`reload` reads files again that have changed; `on_exchange` is called when other models are served."""
        self._settings, self._model_settings = settings, model_settings
        self._models, self._admission, self._metrics = models, admission, metrics
        self._server, self._routes, self._route_metrics = server, routes, route_metrics
        self._tracing, self._reload, self._on_exchange = tracing, reload, on_exchange
        self._recent = recent
        self.feedback: Feedback | None = None
        self._log: RequestLog | None = None
        self._row = metrics.row(server.index)
        self._agreements: list[Agreement] = []
        self._replaced: list[Endpoint] = []
        self._shadow: Shadow | None = None
        self._pending: _Pending | None = None
        self._preparing = asyncio.Lock()
        self._aborted: set[int] = set()
        """The generations of changes that were given up; a few bytes each."""
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self, further: Callable[[], AbstractAsyncContextManager[None]]) -> AsyncIterator[None]:
        """Open the endpoints, serve them, and publish metrics, within the block.

        `further` opens what else must run before the process is ready: gRPC.
        """
        row, admission = self._row, self._admission
        admission.access.quotas.process = self._server.index
        with (
            self._observed(),
            self._remembered(),
            ThreadPoolExecutor(1, "runs") as self._runner,
            # Not of a low priority: it would keep the interpreter's lock for as long as it has to wait for a core.
            ThreadPoolExecutor(1, "loads") as self._loader,
            ThreadPoolExecutor(_DECODERS, "decodes") as pool,
        ):
            self._decoders = Decoders(pool, _DECODERS, fair=admission.access.several)
            deployment = self._models.deployment
            self._exchange(deployment, await self._models.prepare(deployment, self._open_first))
            self._route_metrics.open(row)
            loop_metrics = LoopMetrics(row)
            recorders: list[Recorder] = [
                ProcessMetrics(row, "api"),
                self._route_metrics,
                UnknownModelMetrics(row, admission.unknown_model),
                RejectionMetrics(row, admission.rejected),
                loop_metrics,
            ]
            if admission.access_log:
                recorders.append(admission.access_log)
            recorders += [one for one in (self._recent, self._log) if one]
            async with further(), self._listening():
                ticking = asyncio.create_task(self._tick(recorders, loop_metrics))
                yield
                ticking.cancel()
            if self._shadow:
                self._shadow.close()
            self._publish(recorders)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        """Receive the messages of the parent process within the block."""
        channel, loop = self._server.channel, asyncio.get_running_loop()
        if channel:
            loop.add_reader(channel.fileno(), self._receive)
            await self._deliver(Serving(self._models.deployment.generation))
        yield
        if channel:
            loop.remove_reader(channel.fileno())
        for task in self._tasks:
            task.cancel()

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Open the access log and the exporter of spans, after the fork: both have a thread."""
        settings, admission = self._settings, self._admission
        # The span of a request is made first: its line of the log names the trace.
        observers: list[Traces | AccessLog] = []
        if self._tracing:
            sampled = ExemplarRecorder(self._row).add
            observers.append(open_traces(self._tracing, version("distillery"), sampled))
        if settings.access_log:
            admission.access_log = AccessLog(
                sys.stdout.fileno(),
                sample=settings.access_log_sample,
                rate=settings.access_log_rate,
                shared=settings.api_servers > 1,
            )
            observers.append(admission.access_log)
        admission.observers = tuple(observers)
        yield
        for one in observers:
            one.close()

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        """Remember predictions for feedback and the request log, whose thread is started after the fork."""
        if settings := log_settings(self._settings):
            self._log = RequestLog(settings, self._server.index, self._row)
            self._admission.on_prediction = self._log.predicted
        if self._recent:
            self._recent.open(self._server.index)
            self.feedback = Feedback(
                self._recent, self._row, lambda: self._models.deployment.slots, self._log
            )
            self._admission.on_prediction = self.feedback.predicted
        yield
        if self._log:
            self._log.close()

    async def _open_first(self, entry: ModelEntry, slot: str, others: Endpoints) -> Endpoint:
        """Open an endpoint at the start of the process, when nothing is served yet, maybe after changes."""
        api = DigitAPI(entry, self._model_settings)
        api.end_process = self._server.end_process
        if self._settings.executor == "inprocess":
            api.setup("cpu")
        return self._endpoint(api, slot, others)

    async def _open(self, entry: ModelEntry, slot: str, others: Endpoints) -> Endpoint:
        """Open an endpoint next to those in use. Raises `DistilleryError`."""
        api = DigitAPI(entry, self._model_settings)
        await asyncio.get_running_loop().run_in_executor(self._loader, api.setup, "cpu")
        return self._endpoint(api, slot, others)

    def _endpoint(self, api: DigitAPI, slot: str, others: Endpoints) -> Endpoint:
        name, number = api.entry.name, api.entry.manifest.version
        executor = self._executor(api, slot, others)
        metrics, queue = RequestMetrics(self._row, slot), QueueMetrics(self._row, slot, executor.queued)
        return Endpoint(api, name, number, slot, executor, self._decoders, metrics, queue)

    def _executor(self, api: DigitAPI, slot: str, others: Endpoints) -> Executor:
        fair = self._admission.access.several
        if rule := api.entry.manifest.cascade:
            student, teacher = (others[member.key].executor for member in (rule.student, rule.teacher))
            return CascadeExecutor(api, student, teacher)
        if self._settings.executor == "workers":
            return Workers(api, self._server.run_in_worker, self._settings.workers_per_model, fair=fair)
        api.metrics = RunMetrics(self._row, slot)
        return InProcess(api, self._runner, fair=fair)

    def _exchange(self, deployment: Deployment, endpoints: Endpoints) -> None:
        """Serve another deployment from the next batch on."""
        self._replaced += self._models.exchange(deployment, endpoints).values()
        self._routes.open()
        self._agreements = self._compare_with_teacher()
        if self._shadow:
            self._shadow.close()
        self._shadow = self._start_shadow()
        self._on_exchange()

    def _start_shadow(self) -> Shadow | None:
        """Mirror requests to the candidate, if the release says so."""
        release, latest = self._models.deployment.release, self._models.deployment.snapshot.latest
        if self._settings.executor != "inprocess" or not release.shadow:
            return None
        stable, candidate = self._models.find(STABLE), self._models.find(CANDIDATE)
        teacher = self._models.find(TEACHER).api if TEACHER in latest else None
        return Shadow(stable.api, candidate.api, teacher, self._row, candidate.slot, release.shadow)

    def _compare_with_teacher(self) -> list[Agreement]:
        """Return the comparisons of each model with the teacher, if it is served and compared with."""
        samples = self._settings.agreement_samples
        deployment = self._models.deployment
        if self._settings.executor != "inprocess" or not samples or TEACHER not in deployment.snapshot.latest:
            return []
        teacher = self._models.find(TEACHER).api
        return [
            Agreement(teacher, endpoint.api, self._row, endpoint.slot, self._runner, samples, self._log)
            for endpoint in self._models.endpoints.values()
            if endpoint.name != TEACHER
        ]

    async def _tick(self, recorders: list[Recorder], loop_metrics: LoopMetrics) -> None:
        """Periodically do what would cost too much per request: heartbeats, deadlines, metrics."""
        longest_run = max(self._settings.request_timeout, HANG_SECONDS)
        while True:
            self._server.beat()
            sleeping = time.monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            loop_metrics.late(time.monotonic() - sleeping - _TICK_SECONDS)
            self._admission.expire_late()
            self._admission.backlog.measure()
            self._reload()
            for endpoint in (*self._models.endpoints.values(), *self._replaced):
                if endpoint.executor.longest_run() > longest_run:
                    self._server.fail(f"a run of {endpoint.name} has taken {longest_run:g} s")
            self._publish(recorders)

    def _publish(self, recorders: list[Recorder]) -> None:
        for one in (*recorders, *self._agreements):
            one.publish()
        for endpoint in (
            *self._replaced,
            *self._models.endpoints.values(),
        ):  # of one slot, the one in use last
            endpoint.metrics.publish()
            endpoint.queue.publish()
            if self._settings.executor == "inprocess" and not endpoint.api.entry.manifest.cascade:
                endpoint.api.metrics.publish()
        self._replaced = [endpoint for endpoint in self._replaced if endpoint.metrics.in_flight]

    # Changes of what is served.

    def _receive(self) -> None:
        """Handle the messages of the parent process."""
        channel = self._server.channel
        assert channel  # noqa: S101 - its descriptor is read
        for message in channel.receive():
            if isinstance(message, Attached):
                self._run(self._read(message))
            else:
                self._handle(message)

    async def _read(self, message: Attached) -> None:
        self._handle(await asyncio.get_running_loop().run_in_executor(self._loader, message.read))

    def _handle(self, message: object) -> None:
        match message:
            case Prepare(deployment):
                self._run(self._prepare(deployment))
            case Commit(generation):
                if self._pending and self._pending.deployment.generation == generation:
                    self._exchange(self._pending.deployment, self._pending.endpoints)
                    self._pending = None
                    self._run(self._deliver(Serving(generation)))
                elif (
                    self._models.deployment.generation != generation
                ):  # it cannot serve what the others serve: its requests end, and another process replaces it
                    os.kill(os.getpid(), signal.SIGTERM)
            case Abort(generation):
                self._aborted.add(generation)
                if self._pending and self._pending.deployment.generation == generation:
                    self._pending = None
            case Result(number, error, value):
                if (future := self._asked.pop(number, None)) and not future.done():
                    future.set_result((error, value))

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, deployment: Deployment) -> None:
        """Open what a deployment needs, and report the result."""
        async with self._preparing:
            if deployment.generation in self._aborted:
                return
            try:
                endpoints = await self._models.prepare(deployment, self._open)
            except (DistilleryError, MemoryError) as error:
                reason = str(error) or "not enough memory"
                await self._deliver(Failed(deployment.generation, reason[:_MAX_REASON]))
                return
            if deployment.generation not in self._aborted:
                self._pending = _Pending(deployment, endpoints)
                await self._deliver(Prepared(deployment.generation))

    async def _deliver(self, message: object) -> bool:
        """Send a message as soon as the parent has read some of those before; return False without a parent."""
        channel = self._server.channel
        while channel and not channel.send(message):  # noqa: ASYNC110 - the parent is another process
            await asyncio.sleep(_TICK_SECONDS)
        return channel is not None

    async def change(self, action: str, **arguments: Any) -> Any:
        """Ask the parent process for a change, and return its result. Raises `RequestError`."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_CHANGE_SECONDS):
                if not await self._deliver(Asked(number, action, arguments)):
                    raise InvalidInput(
                        "this application runs without distillery-serve, which changes what is served; restart it"
                    )
                error, value = await future
        except TimeoutError:
            raise NotReady(f"the change was not made within {_CHANGE_SECONDS:g} s; see the log") from None
        finally:
            self._asked.pop(number, None)
        if error:
            kind: type[RequestError] = UnknownModel if error.unknown else InvalidInput
            raise kind(error.message)
        return value


def log_settings(settings: ServiceSettings) -> LogSettings | None:
    """Return the settings of the request log, None without one."""
    if settings.request_log is None:
        return None
    return LogSettings(
        settings.request_log,
        settings.request_log_sample,
        settings.request_log_rate,
        settings.request_log_bytes,
        settings.request_log_seconds,
    )
