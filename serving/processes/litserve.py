"""Everything we rely on inside LitServe 0.2.19, in one place; tests/serving/processes/test_litserve.py checks it.

From LitServe come the application, the `LitAPI` hooks, the worker processes and the queues to them. Its
`run()` does not come: it neither supervises its API processes nor hears SIGTERM, and it shares one socket.
"""

import asyncio
import gc
import itertools
import logging
import math
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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

from serving.codecs.errors import TimedOut
from serving.engine.batching import Prediction
from serving.engine.lit_api import DigitAPI, run_batch
from serving.engine.recorder import CpuMetrics
from serving.model.session import Images
from serving.processes.supervisor import Supervisor, bind, end_with_parent, spell

_logger = logging.getLogger("distillery")
_spawn = multiprocessing.get_context("spawn")
_fork = multiprocessing.get_context("fork")


class DrainLoop(LitLoop):  # type: ignore[misc]
    """A worker's loop: wait for a request, take all that wait behind it, run them as one batch.

    LitServe's own loops poll, or spin a core.
    """

    def __init__(self, ready: Connection) -> None:
        super().__init__()
        self._ready: Connection | None = ready

    def run(  # the signature is LitServe's
        self,
        lit_api: DigitAPI,
        device: str,  # noqa: ARG002
        worker_id: int,  # noqa: ARG002
        request_queue: "Queue[Any]",
        transport: Any,
        workers_setup_status: Any,  # noqa: ARG002
        callback_runner: Any,  # noqa: ARG002
    ) -> None:
        """Serve one batch; LitServe calls this again and again."""
        if self._ready:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends us
            end_with_parent()
            self._cpu = CpuMetrics("worker")
            self._cpu.publish()
            self._ready.send_bytes(b"ready")
            self._ready = None
        requests = [request_queue.get()]
        while sum(len(images) for *_, inputs in requests for images in inputs) < lit_api.max_batch_size:
            try:
                requests.append(request_queue.get_nowait())
            except Empty:
                break
        too_old = time.monotonic() - lit_api.request_timeout  # whoever asked has been answered already
        requests = [request for request in requests if request[2] > too_old]
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

    def _put(self, transport: Any, consumer: int, uid: int, answer: Any, status: str) -> None:
        self.put_response(transport, consumer, uid, answer, status, LoopResponseType.REGULAR)


class DigitServer(LitServer):  # type: ignore[misc]
    """LitServe's application and workers under our own supervision.

    With `workers_per_model` 0 the models run in the API processes, and no worker is started.
    """

    def __init__(
        self,
        apis: Sequence[DigitAPI],
        *,
        workers_per_model: int,
        timeout: float,
        models_running: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        super().__init__(
            list(apis),
            accelerator="cpu",  # "auto" may import torch; our sessions choose their device themselves
            devices=1,
            workers_per_device=max(1, workers_per_model),
            timeout=timeout,
        )
        self._apis = apis
        self._in_process = workers_per_model == 0
        self._models_running = models_running
        self._index = 0
        self._numbers = itertools.count()
        self._report, self._ready = multiprocessing.Pipe(duplex=False)
        for api in apis:
            api.loop = DrainLoop(self._ready)

    def register_endpoints(self) -> None:
        """Add none of LitServe's routes: ours are in `serving.codecs.predict` and `serving.http.routes`."""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002 - FastAPI's signature
        """Run the models while an API process runs."""
        collector = None
        if not self._in_process:
            collector = asyncio.create_task(
                response_queue_to_buffer(
                    self._transport, self.response_buffer, self._index, self.litapi_connector
                )
            )
        async with self._models_running():
            self._ready.send_bytes(b"ready")
            yield
        if collector:
            collector.cancel()
            await asyncio.wait((collector,))

    async def ask_worker(self, api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
        """Have one batch run by a worker. Raises `TimedOut`."""
        uid = next(self._numbers)
        item = self.response_buffer[uid] = ResponseBufferItem(asyncio.Event())
        try:
            self._get_request_queue(api.api_path).put((self._index, uid, time.monotonic(), inputs))
            async with asyncio.timeout(self.timeout):
                await item.event.wait()
        except TimeoutError:
            raise TimedOut(f"no answer within {self.timeout:g} s; try again") from None
        finally:
            del self.response_buffer[uid]
        answer, status = item.response
        if status != LitAPIStatus.OK:
            raise RuntimeError(f"a worker of {api.entry.name} failed: {answer}")
        predictions: list[Prediction] = answer
        return predictions

    def serve(
        self,
        app: ASGIApp,
        *,
        http: Callable[..., asyncio.Protocol],
        host: str,
        port: int,
        api_servers: int,
        log_level: str,
        on_ready: Callable[[str], None],
    ) -> None:
        """Serve `app` until SIGTERM or SIGINT; `on_ready` gets the URL. Raises `ServiceError`.

        `http` makes the protocol of a connection, called as uvicorn calls its own.
        """
        sockets = bind(host, port, api_servers)
        config = uvicorn.Config(
            app,
            http=http,  # type: ignore[arg-type] # called as its class would be
            ws="none",
            lifespan="on",
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(self.timeout),
        )
        supervisor = Supervisor(
            start_api=lambda index: self._start_api(index, config, sockets),
            api_servers=api_servers,
            start_workers=lambda: [] if self._in_process else self._launch_workers(api_servers),
            ready=self._report,
            patience=math.ceil(self.timeout) + 2,
        )
        url = f"http://{spell(sockets[0])}"
        try:
            supervisor.run(lambda: on_ready(url))
        finally:
            for listener in sockets:
                listener.close()

    def _launch_workers(self, api_servers: int) -> list[BaseProcess]:
        """LitServe's workers, joined to us by queues of our choosing: its manager's are a process away."""
        self.workers_setup_status: dict[str, str] = {}
        self._transport = MPQueueTransport(None, [_spawn.Queue() for _ in range(api_servers)])
        workers: list[BaseProcess] = []
        for api in self._apis:
            self.litapi_request_queues[api.api_path] = _spawn.Queue()
            for worker in self.launch_inference_worker(api):
                worker.name = f"the worker of {api.entry.name}"
                workers.append(worker)
        return workers

    def _start_api(self, index: int, config: uvicorn.Config, sockets: list[socket.socket]) -> BaseProcess:
        process = _fork.Process(
            target=self._run_api, args=(index, config, sockets), name=f"API process {index}"
        )
        process.start()
        return process

    def _run_api(self, index: int, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        """The life of one API process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends us
        signal.signal(signal.SIGTERM, _end)  # uvicorn's own handler ends with this one
        end_with_parent()
        for other, listener in enumerate(sockets):
            if other != index:
                listener.close()
        self._index = index
        if self._in_process:
            for api in self._apis:
                api.setup("cpu")
        gc.collect()
        gc.freeze()  # what stands now stays: spare the collector the walk through all of FastAPI
        uvicorn.Server(config).run([sockets[index]])


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break into the clean end
    sys.exit(0)
