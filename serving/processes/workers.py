"""Batches between API processes and LitServe's worker processes.

A worker listens on a Unix socket in a folder that only the service's user can enter; each API process has a connection
to each worker. LitServe's queues are not used: a process that dies may hold the lock of a shared queue for ever, while
a connection ends with it, at once, for the batches inside it alone.

A frame is its length, `uint32`, and a pickle: `(sent, [images, …])` to the worker, `[prediction, …]` or the text of an
error back, in the same order. The worker's first frame, empty, reports that it has taken the connection.
"""

import asyncio
import logging
import pickle
import signal
import socket
import struct
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple, cast

from litserve.loops import LitLoop

from serving.codecs.base import Prediction
from serving.codecs.errors import Overloaded, TimedOut
from serving.engine.lit_api import DigitAPI, run_batch
from serving.engine.metrics.recorder import ProcessMetrics, RunMetrics
from serving.engine.metrics.series import Metrics
from serving.model.tensors import Images
from serving.processes.lifeline import BEAT_SECONDS, Lifeline, end_with_parent
from serving.processes.sockets import ServiceError

_LENGTH = struct.Struct("!I")
_RECONNECT_SECONDS = 0.05
_EXPIRED = "expired"

_logger = logging.getLogger("distillery")


class Batch(NamedTuple):
    """A batch of an API process, in the worker."""

    connection: socket.socket
    inputs: list[Images]


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """Create the folder of the workers' sockets. Raises `ServiceError`."""
    try:
        return tempfile.TemporaryDirectory(prefix="distillery-")
    except OSError as error:
        raise ServiceError(
            f"no temporary folder can be written ({error.strerror}), and the workers' sockets are in one: "
            "mount a tmpfs at /tmp, or name a writable folder with TMPDIR"
        ) from None


def listen(path: Path) -> socket.socket:
    """Return a socket that listens at `path`. Raises `ServiceError`."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise ServiceError(f"cannot make the socket {path}: {error}; set TMPDIR to a shorter path") from None
    listener.listen()
    return listener


class WorkerLoop(LitLoop):  # type: ignore[misc]
    """The loop of a worker: run everything that has arrived as one batch; LitServe's own loops poll."""

    def __init__(
        self, listener: socket.socket, lifeline: Lifeline, metrics: Metrics, row: int, slot: str
    ) -> None:
        """Serve the connections of `listener`, and publish the metrics in row number `row`, of the model's `slot`."""
        super().__init__()
        self._listener = listener
        self._lifeline = lifeline
        self._metrics = metrics
        self._row = row
        self._slot = slot
        self._connections: list[socket.socket] = []
        self._process: ProcessMetrics | None = None

    def run(self, lit_api: DigitAPI, *litserve: Any) -> None:  # noqa: ARG002 - its queues and transport
        """Process one batch; LitServe calls this repeatedly, after `DigitAPI.setup`."""
        if self._process is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group; the parent ends it
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            end_with_parent()
            row = self._metrics.row(self._row)
            lit_api.metrics = RunMetrics(row, self._slot)
            self._process = ProcessMetrics(row, "worker")
            self._process.publish()
        self._lifeline.beat()
        batches = self._receive(lit_api.max_batch_size, lit_api.request_timeout)
        if not batches:
            return
        try:
            predictions = run_batch(lit_api, [images for batch in batches for images in batch.inputs])
        except Exception as error:
            _logger.exception("a run of %s failed", lit_api.entry.name)
            for batch in batches:
                self._send(batch.connection, repr(error))
            return
        lit_api.metrics.publish()
        self._process.publish()
        start = 0
        for connection, inputs in batches:
            self._send(connection, predictions[start : start + len(inputs)])
            start += len(inputs)

    def _receive(self, max_images: int, timeout: float) -> list[Batch]:
        """Wait for batches; return those that have arrived, about `max_images` images."""
        batches: list[Batch] = []
        images = 0
        for ready in wait([self._listener, *self._connections], BEAT_SECONDS):
            if ready is self._listener:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._send_frame(connection, b"")
            elif images < max_images:
                assert isinstance(ready, socket.socket)  # noqa: S101 - nothing else is waited on
                found = self._next_batch(ready, time.monotonic() - timeout)
                if found:
                    batches.append(found)
                    images += sum(map(len, found.inputs))
        return batches

    def _next_batch(self, connection: socket.socket, latest: float) -> Batch | None:
        """Return the next batch of a connection; None if it has ended, or the batch was sent before `latest`."""
        content = _receive_frame(connection)
        if content is None:
            self._close(connection)
            return None
        sent, inputs = pickle.loads(content)  # noqa: S301 - of a process of this service
        if sent < latest:  # its API process has replied already
            self._send(connection, _EXPIRED)
            return None
        return Batch(connection, inputs)

    def _send(self, connection: socket.socket, response: list[Prediction] | str) -> None:
        self._send_frame(connection, pickle.dumps(response, protocol=pickle.HIGHEST_PROTOCOL))

    def _send_frame(self, connection: socket.socket, content: bytes) -> None:
        try:
            connection.sendall(_LENGTH.pack(len(content)) + content)
        except OSError:  # the API process has ended
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        connection.close()
        self._connections = [one for one in self._connections if one is not connection]


class WorkerPool:
    """The workers of one model, in an API process."""

    def __init__(self, name: str, paths: Sequence[Path], timeout: float) -> None:
        self._name = name
        self._connections = [_WorkerConnection(path) for path in paths]
        self._timeout = timeout

    @property
    def ready(self) -> bool:
        """Whether a worker has taken a connection."""
        return any(connection.taken.is_set() for connection in self._connections)

    async def connected(self) -> None:
        """Wait until every worker has taken its connection."""
        for connection in self._connections:
            await connection.taken.wait()

    async def keep_connected(self) -> None:
        """Keep a connection to every worker, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for connection in self._connections:
                group.create_task(connection.keep_connected())

    async def run(self, inputs: list[Images]) -> list[Prediction]:
        """Run one batch in the worker that has least to do. Raises `TimedOut`, `Overloaded` if the worker ends."""
        connection = min(self._connections, key=lambda one: (not one.taken.is_set(), len(one.pending)))
        try:
            async with asyncio.timeout(self._timeout):
                response = await connection.send(inputs)
        except TimeoutError:
            response = _EXPIRED
        except ConnectionError:
            raise Overloaded(
                f"a worker of {self._name} has ended and is restarted; retry in a second"
            ) from None
        if response == _EXPIRED:
            raise TimedOut(f"the prediction was not ready within {self._timeout:g} s; retry")
        if isinstance(response, str):
            raise RuntimeError(f"a worker of {self._name} failed: {response}")
        return response


Response = list[Prediction] | str


class _WorkerConnection(asyncio.Protocol):
    """A connection to one worker, and whether it has taken it; `pending` are the batches inside it, in order."""

    def __init__(self, path: Path) -> None:
        self.pending: deque[asyncio.Future[Response]] = deque()
        self.taken = asyncio.Event()
        self._path = path
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._received = bytearray()
        self._transport: asyncio.WriteTransport

    async def keep_connected(self) -> None:
        """Connect, and connect again whenever the worker has ended."""
        loop = asyncio.get_running_loop()
        while True:
            self._lost.clear()
            try:
                await loop.create_unix_connection(lambda: self, str(self._path))
            except OSError:
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            await self._lost.wait()

    async def send(self, inputs: list[Images]) -> Response:
        """Return the worker's response to a batch. Raises `ConnectionError`."""
        await self._connected.wait()
        response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.pending.append(response)
        content = pickle.dumps((time.monotonic(), inputs), protocol=pickle.HIGHEST_PROTOCOL)
        self._transport.write(_LENGTH.pack(len(content)) + content)
        return await response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass of it
        self._connected.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + length
            if len(self._received) < end:
                return
            content = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            if not content:
                self.taken.set()
                continue
            response = self.pending.popleft()
            if not response.done():
                response.set_result(pickle.loads(content))  # noqa: S301 - of a process of this service

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.taken.clear()
        self._connected.clear()
        self._received.clear()
        for response in self.pending:
            if not response.done():
                response.set_exception(ConnectionResetError())
        self.pending.clear()
        self._lost.set()


def _receive_frame(connection: socket.socket) -> bytes | None:
    """Return the next frame; None at the end of the connection."""
    try:
        head = connection.recv(_LENGTH.size, socket.MSG_WAITALL)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        content = connection.recv(length, socket.MSG_WAITALL)
    except OSError:
        return None
    return content if len(content) == length else None
