"""The LitServe server. All reliance on internals of LitServe 0.2.19 is in this module and `serving.processes.workers`.

LitServe provides the FastAPI application, the `LitAPI` hooks (`serving.engine.lit_api`) and the worker processes. Its
`run()` is replaced by `DigitServer.serve`: it neither supervises its API processes nor handles SIGTERM, and its API
processes share one socket. Its queues are replaced by `serving.processes.workers`.
`tests/serving/processes/test_litserve.py` checks every internal used.

A batch reaches `DigitAPI.predict` in a worker process as follows:

    WorkerPool.run      sends it to a worker of the model
    WorkerLoop.run      takes it, with all batches that have arrived, in the worker that LitServe started
    run_batch           calls the hooks batch, predict and unbatch
    WorkerLoop.run      sends the predictions back
"""

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from litserve import LitServer
from starlette.types import ASGIApp

from serving.codecs.base import Prediction
from serving.engine.lit_api import DigitAPI
from serving.engine.metrics.series import Metrics, Slots
from serving.model.tensors import Images
from serving.model.versions import Version
from serving.processes.channel import Channel
from serving.processes.lifeline import Lifeline, end_with_parent
from serving.processes.sockets import Listeners, bind, format_address
from serving.processes.supervisor import Child, Supervisor
from serving.processes.workers import WorkerLoop, WorkerPool, listen, socket_folder

_logger = logging.getLogger("distillery")

_CLOSE = (b"connection", b"close")
_LINGER = 1.0
"""Seconds in which a client may end TLS at a shutdown."""

WorkerPaths = dict[Version, list[Path]]
"""The sockets of each version's workers."""


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves TLS to asyncio: a minute for a handshake, and for the client's part of the end."""

    def __init__(self, config: uvicorn.Config, handshake_timeout: float) -> None:
        super().__init__(config)
        self._handshake_timeout = handshake_timeout

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is None:
            await super().startup(sockets)
            return
        await super().startup([])  # the lifespan
        self.servers = [await self._listen(listener) for listener in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is None:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        self.servers = []  # uvicorn would wait for handshakes
        closing = asyncio.create_task(self._close_silent())
        await super().shutdown(sockets)
        closing.cancel()

    async def _close_silent(self) -> None:
        """Abort connections whose clients do not end TLS when the service does, as idle ones do not."""
        since: dict[Any, float] = {}
        while True:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if connection.transport.is_closing() and now > since.setdefault(connection, now) + _LINGER:
                    connection.transport.abort()
            await asyncio.sleep(0.1)

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            lambda: self.config.http_protocol_class(  # type: ignore[call-arg] # uvicorn's
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            sock=listener,
            ssl=self.config.ssl,
            backlog=self.config.backlog,
            ssl_handshake_timeout=self._handshake_timeout,
            ssl_shutdown_timeout=self._handshake_timeout,
        )


class DigitServer(LitServer):  # type: ignore[misc]
    """LitServe's application and workers, supervised by `serving.processes.supervisor`.

    With `workers_per_model` 0, no worker is started and the models run in the API processes. The rows of `metrics` are
    those of the API processes, then those of the workers, by model; cascades have none.
    """

    def __init__(
        self, apis: Sequence[DigitAPI], metrics: Metrics, *, workers_per_model: int, timeout: float
    ) -> None:
        super().__init__(
            list(apis),
            accelerator="cpu",  # "auto" may import torch; the sessions choose their device themselves
            devices=1,
            workers_per_device=max(1, workers_per_model),
            timeout=timeout,
        )
        self.apis = apis
        self.slots: Slots = {}
        """Of the metrics of the models."""
        self.index = 0
        """The number of this API process."""
        self.draining = False
        """Whether the shutdown has been announced: an API process is then not ready, but serves."""
        self._metrics = metrics
        self._workers_per_model = workers_per_model
        self._worker_paths: WorkerPaths = {}
        self._pools: dict[Version, WorkerPool] = {}
        self._lifeline: Lifeline | None = None
        self._uvicorn: uvicorn.Server | None = None
        # Arguments that LitServe passes to a worker besides the API; unused.
        self.workers_setup_status: dict[str, str] = {}
        self._transport = None
        self.litapi_request_queues = {api.api_path: None for api in apis}

    def register_endpoints(self) -> None:
        """Add no routes; LitServe's are replaced by `serving.http.prediction_routes` and `serving.http.routes`."""

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG002 - FastAPI's signature
        """Keep the connections to the workers while an API process runs."""
        self._pools = {
            version: WorkerPool(version[0], paths, self.timeout)
            for version, paths in self._worker_paths.items()
        }
        connecting = [asyncio.create_task(pool.keep_connected()) for pool in self._pools.values()]
        for pool in self._pools.values():
            await pool.connected()
        yield
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)

    def beat(self) -> None:
        """Report to the supervisor, from the event loop of an API process, that it responds."""
        if self._lifeline:
            self._lifeline.beat()
            if self._lifeline.drains():
                self._drain()

    def fail(self, reason: str) -> None:
        """End this API process at once, to be replaced: a thread that never returns cannot be stopped otherwise."""
        if self._lifeline:
            _logger.critical("%s: this process ends", reason)
            os._exit(1)

    def _drain(self) -> None:
        """Ask clients to close their connections: with the next response on each."""
        self.draining = True
        if self._uvicorn:
            self._uvicorn.server_state.default_headers.append(_CLOSE)
            self._uvicorn.config.encoded_headers.append(
                _CLOSE
            )  # from which uvicorn makes the others every second
            for connection in self._uvicorn.server_state.connections:
                if hasattr(connection, "close_after_response"):
                    connection.close_after_response()

    @property
    def end_process(self) -> Callable[[str], object] | None:
        """What ends a process that cannot start, with the reason for the supervisor; None in a program of others."""
        return self._lifeline.fail if self._lifeline else None

    @property
    def channel(self) -> Channel | None:
        """The messages from and to the supervisor, None in a process that is not its child."""
        return self._lifeline.channel if self._lifeline else None

    @property
    def workers_ready(self) -> bool:
        """Whether every model has a worker, unless models run in the API processes."""
        return all(pool.ready for pool in self._pools.values())

    async def run_in_worker(self, api: DigitAPI, inputs: list[Images]) -> list[Prediction]:
        """Run one batch in a worker. Raises `TimedOut`, `Overloaded`."""
        return await self._pools[api.entry.version_key].run(inputs)

    def serve(
        self,
        start_api: Callable[[int, Listeners, Lifeline], BaseProcess],
        *,
        host: str,
        port: int,
        api_servers: int,
        delay: float,
        scheme: str,
        on_ready: Callable[[str], None],
        on_check: Callable[[Sequence[Child]], None],
        on_end: Callable[[], None],
    ) -> None:
        """Serve until SIGTERM or SIGINT; `on_ready` receives the URL. Raises `ServiceError`.

        `start_api` starts an API process, which calls `run_api`; `on_check` is called at least every
        `CHECK_SECONDS`, `on_end` at the end. A shutdown begins after `delay` seconds.
        """
        with ExitStack() as stack:
            sockets = bind(host, port, api_servers)

            def close() -> None:
                # With the API processes' own: the system then refuses connections, rather than keep them unanswered.
                for listener in sockets:
                    listener.close()

            def end() -> None:
                on_end()
                close()

            stack.callback(close)
            folder = socket_folder() if self._workers_per_model else nullcontext("")
            workers = self._workers(Path(stack.enter_context(folder)), api_servers)
            apis = [
                Child(
                    f"API process {index}",
                    partial(start_api, index, sockets),
                    partial(self._metrics.process_died, "api", index),
                )
                for index in range(api_servers)
            ]
            url = f"{scheme}://{format_address(sockets[0])}"
            patience = math.ceil(self.timeout) + 2
            supervisor = Supervisor(
                workers, apis, delay=delay, patience=patience, on_check=on_check, on_end=end
            )
            supervisor.run(lambda: on_ready(url))

    def _workers(self, folder: Path, first_row: int) -> list[Child]:
        """Open the sockets of the workers, and return the workers, not started yet."""
        workers: list[Child] = []
        for api in self.apis:
            if api.entry.manifest.cascade:
                continue
            for number in range(self._workers_per_model):
                path = folder / f"{len(workers)}"
                self._worker_paths.setdefault(api.entry.version_key, []).append(path)
                name = f"the worker of {api.entry.name}"
                row = first_row + len(workers)
                start = partial(self._start_worker, api, number, listen(path), row)
                workers.append(Child(name, start, partial(self._metrics.process_died, "worker", row)))
        return workers

    def _start_worker(
        self, api: DigitAPI, number: int, listener: Any, row: int, lifeline: Lifeline
    ) -> BaseProcess:
        api.loop = WorkerLoop(listener, lifeline, self._metrics, row, self.slots[api.entry.version_key])
        api.end_process = lifeline.fail
        process: BaseProcess = self.launch_single_inference_worker(api, number)
        return process

    @property
    def channels(self) -> WorkerPaths:
        """What a spawned API process needs of the parent's server: the sockets of the workers."""
        return self._worker_paths

    def connect(self, channels: WorkerPaths) -> None:
        """Use the workers of the parent process."""
        self._worker_paths = channels

    def run_api(
        self,
        app: ASGIApp,
        index: int,
        listeners: Listeners,
        lifeline: Lifeline,
        *,
        http: Callable[..., asyncio.Protocol],
        keep_alive: float,
        client_timeout: float,
        log_level: str,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Run API process number `index`; `http` creates the protocol of a connection, as uvicorn's own does.

        `keep_alive`: seconds after which an idle connection is closed; `client_timeout`: for a TLS handshake.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends it
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # likewise; the parent reloads the models
        signal.signal(signal.SIGTERM, self._end)  # called by uvicorn after its own handler
        end_with_parent()
        for listener in listeners:
            if listener is not listeners[index]:
                listener.close()
        self.index = index
        self._lifeline = lifeline
        config = uvicorn.Config(
            app,
            http=http,  # type: ignore[arg-type] # a class or a factory
            ws="none",
            lifespan="on",
            log_level=log_level,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `serving.http.middleware.normalise` reads them
            timeout_keep_alive=keep_alive,  # type: ignore[arg-type] # its type is int, but any number works
            timeout_graceful_shutdown=math.ceil(self.timeout),
            ssl_context_factory=(lambda *_: tls) if tls else None,
        )
        gc.collect()
        gc.freeze()  # exclude FastAPI and all else loaded so far from every later collection
        self._uvicorn = _Server(config, client_timeout)
        self._uvicorn.run([listeners[index]])

    def _end(self, *_: object) -> None:
        """End a process that has not begun to serve; called again by uvicorn when it has shut down."""
        if self._uvicorn is None or not self._uvicorn.should_exit:
            os._exit(0)  # an exception would be lost in a callback of the garbage collection
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the shutdown
