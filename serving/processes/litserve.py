"""The LitServe server. All reliance on internals of LitServe 0.2.19 is in this module.

LitServe provides the FastAPI application, the `LitAPI` hooks (`serving.engine.lit_api`), the worker processes
and the request queues. Its `run()` is replaced by `DigitServer.serve`: it neither supervises its API processes
nor handles SIGTERM, and its API processes share one socket. `tests/serving/processes/test_litserve.py` checks
every internal used here.

A request reaches `DigitAPI.predict` in a worker process as follows:

    DigitServer.run_in_worker   puts a batch into LitServe's request queue of the model
    DrainLoop.run               takes it, with all batches queued behind it, in the worker that LitServe started
    run_batch                   calls the hooks batch, predict and unbatch
    DrainLoop.run               sends the predictions through LitServe's transport
    response_queue_to_buffer    LitServe's task in the API process, wakes up `run_in_worker`
"""

import asyncio
import gc
import itertools
import logging
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, Queue
from typing import Any

import uvicorn
from fastapi import FastAPI
from litserve import LitServer
from litserve.loops import LitLoop
from litserve.server import response_queue_to_buffer
from litserve.transport.process_transport import MPQueueTransport
from litserve.utils import (
    LitAPIStatus,
    LoopResponseType,
    ResponseBufferItem,
)
from starlette.types import ASGIApp

from serving.codecs.base import Prediction
from serving.codecs.errors import TimedOut
from serving.engine.lit_api import DigitAPI, run_batch
from serving.engine.metrics import Metrics
from serving.engine.recorder import CpuMetrics, RunMetrics
from serving.model.tensors import Images
from serving.processes.supervisor import Listeners, Supervisor, bind, end_with_parent, format_address

_logger = logging.getLogger("distillery")
_spawn = multiprocessing.get_context("spawn")


class DrainLoop(LitLoop):  # type: ignore[misc]
    """The loop of a worker: wait for a request, add all requests queued behind it, run them as one batch.

    LitServe's own loops poll or keep a core busy.
    """

    def __init__(self, ready: Connection, metrics: Metrics, first_row: int) -> None:
        """Publish the metrics of worker n in row `first_row` + n."""
        super().__init__()
        self._ready: Connection | None = ready
        self._metrics = metrics
        self._first_row = first_row

    def run(  # the signature is LitServe's
        self,
        lit_api: DigitAPI,
        device: str,  # noqa: ARG002
        worker_id: int,
        request_queue: "Queue[Any]",
        transport: Any,
        workers_setup_status: Any,  # noqa: ARG002
        callback_runner: Any,  # noqa: ARG002
    ) -> None:
        """Process one batch; LitServe calls this repeatedly."""
        if self._ready:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends it
            end_with_parent()
            row = self._metrics.row(self._first_row + worker_id)
            lit_api.metrics = RunMetrics(row, lit_api.entry.name)
            self._cpu = CpuMetrics(row, "worker")
            self._cpu.publish()
            self._ready.send_bytes(b"ready")
            self._ready = None
        requests = [request_queue.get()]
        while sum(len(images) for *_, inputs in requests for images in inputs) < lit_api.max_batch_size:
            try:
                requests.append(request_queue.get_nowait())
            except Empty:
                break
        expired = time.monotonic() - lit_api.request_timeout  # its API process has replied already
        requests = [request for request in requests if request[2] > expired]
        if not requests:
            return
        try:
            predictions = iter(run_batch(lit_api, [images for *_, inputs in requests for images in inputs]))
        except Exception as error:
            _logger.exception("a run of %s failed", lit_api.entry.name)
            for consumer, uid, *_ in requests:
                self._put(transport, consumer, uid, repr(error), LitAPIStatus.ERROR)
            return
        lit_api.metrics.publish()
        self._cpu.publish()
        for consumer, uid, _, inputs in requests:
            self._put(transport, consumer, uid, list(islice(predictions, len(inputs))), LitAPIStatus.OK)

    def _put(self, transport: Any, consumer: int, uid: int, response: Any, status: str) -> None:
        self.put_response(transport, consumer, uid, response, status, LoopResponseType.REGULAR)


class DigitServer(LitServer):  # type: ignore[misc]
    """LitServe's application and workers, supervised by `serving.processes.supervisor`.

    With `workers_per_model` 0, no worker is started and the models run in the API processes. The rows of `metrics` are
    those of the API processes, then those of the workers by model.
    """

    def __init__(
        self,
        apis: Sequence[DigitAPI],
        metrics: Metrics,
        *,
        api_servers: int,
        workers_per_model: int,
        timeout: float,
    ) -> None:
        super().__init__(
            list(apis),
            accelerator="cpu",  # "auto" may import torch; the sessions choose their device themselves
            devices=1,
            workers_per_device=max(1, workers_per_model),
            timeout=timeout,
        )
        self.apis = apis
        self._in_process = workers_per_model == 0
        self.index = 0
        """The number of this API process."""
        self._numbers = itertools.count()
        self._report, self._ready = multiprocessing.Pipe(duplex=False)
        self._transport: Any = None  # without workers
        for number, api in enumerate(apis):
            api.loop = DrainLoop(self._ready, metrics, api_servers + number * workers_per_model)

    def register_endpoints(self) -> None:
        """Add no routes; LitServe's are replaced by `serving.http.app` and `serving.http.routes`."""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002 - FastAPI's signature
        """Receive the workers' responses while an API process runs."""
        if self._in_process:
            yield
            return
        receiving = asyncio.create_task(
            response_queue_to_buffer(self._transport, self.response_buffer, self.index, self.litapi_connector)
        )
        yield
        receiving.cancel()
        await asyncio.wait((receiving,))

    def report_ready(self) -> None:
        """Notify the supervisor, from an API process, that the models are loaded."""
        self._ready.send_bytes(b"ready")

    async def run_in_worker(self, api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
        """Run one batch in a worker. Raises `TimedOut`."""
        uid = next(self._numbers)
        item = self.response_buffer[uid] = ResponseBufferItem(asyncio.Event())
        try:
            self._get_request_queue(api.api_path).put((self.index, uid, time.monotonic(), inputs))
            async with asyncio.timeout(self.timeout):
                await item.event.wait()
        except TimeoutError:
            raise TimedOut(f"the prediction was not ready within {self.timeout:g} s; retry") from None
        finally:
            del self.response_buffer[uid]
        response, status = item.response
        if status != LitAPIStatus.OK:
            raise RuntimeError(f"a worker of {api.entry.name} failed: {response}")
        predictions: list[Prediction] = response
        return predictions

    def serve(
        self,
        start_api: Callable[[int, Listeners], BaseProcess],
        *,
        host: str,
        port: int,
        api_servers: int,
        on_ready: Callable[[str], None],
    ) -> None:
        """Serve until SIGTERM or SIGINT; `on_ready` receives the URL. Raises `ServiceError`.

        `start_api` starts an API process, which calls `run_api`.
        """
        sockets = bind(host, port, api_servers)
        supervisor = Supervisor(
            start_api=lambda index: start_api(index, sockets),
            api_servers=api_servers,
            start_workers=lambda: [] if self._in_process else self._launch_workers(api_servers),
            ready=self._report,
            patience=math.ceil(self.timeout) + 2,
        )
        url = f"http://{format_address(sockets[0])}"
        try:
            supervisor.run(lambda: on_ready(url))
        finally:
            for listener in sockets:
                listener.close()

    def _launch_workers(self, api_servers: int) -> list[BaseProcess]:
        """Start LitServe's workers with `multiprocessing` queues; its own go through another process."""
        self.workers_setup_status: dict[str, str] = {}
        self._transport = MPQueueTransport(None, [_spawn.Queue() for _ in range(api_servers)])
        workers: list[BaseProcess] = []
        for api in self.apis:
            self.litapi_request_queues[api.api_path] = _spawn.Queue()
            for worker in self.launch_inference_worker(api):
                worker.name = f"the worker of {api.entry.name}"
                workers.append(worker)
        return workers

    @property
    def channels(self) -> tuple[Any, ...]:
        """The pipe to the supervisor and the queues to the workers, for a spawned API process."""
        return self._ready, self._transport, self.litapi_request_queues

    def connect(self, channels: tuple[Any, ...]) -> None:
        """Replace the pipe and the queues by those of the parent process."""
        self._ready, self._transport, self.litapi_request_queues = channels

    def run_api(
        self,
        app: ASGIApp,
        index: int,
        listeners: Listeners,
        *,
        http: Callable[..., asyncio.Protocol],
        log_level: str,
    ) -> None:
        """Run API process number `index`; `http` creates the protocol of a connection, as uvicorn's own does."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends it
        signal.signal(signal.SIGTERM, _end)  # called by uvicorn after its own handler
        end_with_parent()
        for listener in listeners:
            if listener is not listeners[index]:
                listener.close()
        self.index = index
        config = uvicorn.Config(
            app,
            http=http,  # type: ignore[arg-type] # a class or a factory
            ws="none",
            lifespan="on",
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(self.timeout),
        )
        gc.collect()
        gc.freeze()  # exclude FastAPI and all else loaded so far from every later collection
        uvicorn.Server(config).run([listeners[index]])


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the shutdown
    sys.exit(0)
