"""The parent process: one listening socket per API process, and an eye on every child.

Each API process gets a `SO_REUSEPORT` socket of its own: on a shared one, most keep-alive connections
sometimes land on one process. An API process that dies is replaced, and its socket waits meanwhile. A dead
model worker ends the service, because it may have taken a lock of the shared queue with it.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from distillery import DistilleryError
from serving.engine.metrics import forget_process

_QUICK_DEATH_S = 1.0  # a process that dies younger would only die again


class ServiceError(DistilleryError):
    """The service cannot start, or cannot go on."""


Kind = tuple[socket.AddressFamily, socket.SocketKind, int]


def bind(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one address; port 0 takes a free one. Raises `ServiceError`."""
    kind, address = free_address(host, port, "--port")
    sockets = []
    for _ in range(count):
        listener = socket.socket(*kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(2048)
        sockets.append(listener)
    return sockets


def free_address(host: str, port: int, flag: str) -> tuple[Kind, Any]:
    """An address that nobody listens on, and the kind of socket for it. Raises `ServiceError` naming `flag`."""
    try:
        family, type_, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ServiceError(f"--host {host} is not an address of this machine: {error.strerror}") from None
    # SO_REUSEPORT would let two services share a port in silence, so ask without it first.
    kind = (family, type_, protocol)
    with socket.socket(*kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}; "
                f"choose another {flag} or end what uses it"
            ) from None
        return kind, probe.getsockname()


def spell(bound: socket.socket) -> str:
    """A socket's address as URLs have it."""
    name, number = bound.getsockname()[:2]
    return f"[{name}]:{number}" if ":" in name else f"{name}:{number}"


def end_with_parent() -> None:
    """In a child: end when the parent is gone, however it went."""
    parent = parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Supervisor:
    """Starts the children, waits until all are ready, and then until SIGTERM, SIGINT or a death."""

    def __init__(
        self,
        *,
        start_api: Callable[[int], BaseProcess],
        api_servers: int,
        start_workers: Callable[[], Sequence[BaseProcess]],
        ready: Connection,
        patience: float,
    ) -> None:
        self._start_api = start_api
        self._api_servers = api_servers
        self._start_workers = start_workers
        self._ready = ready
        self._patience = patience
        self._workers: list[BaseProcess] = []
        self._apis: list[BaseProcess] = []
        self._started_at: list[float] = []

    def run(self, on_ready: Callable[[], None]) -> None:
        """Return when asked to end, all children ended. Raises `ServiceError` when a child's death ends it."""
        stopped, stop = socket.socketpair()
        before = {
            number: signal.signal(number, lambda *_: stop.send(b"."))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self._workers = list(self._start_workers())
            if not self._await_ready(len(self._workers), stopped):
                return
            for index in range(self._api_servers):
                self._apis.append(self._start_api(index))
                self._started_at.append(time.monotonic())
            if not self._await_ready(self._api_servers, stopped):
                return
            on_ready()
            self._watch(stopped)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
            stopped.close()
            stop.close()

    def _await_ready(self, count: int, stopped: socket.socket) -> bool:
        """Whether all of `count` children have reported, rather than a stop having been asked for."""
        while count:
            children = [*self._workers, *self._apis]
            happened = wait([self._ready, stopped, *(child.sentinel for child in children)])
            if stopped in happened:
                return False
            if self._ready in happened:
                self._ready.recv_bytes()
                count -= 1
                continue
            dead = next(child for child in children if child.sentinel in happened)
            raise ServiceError(f"{dead.name} ended before it was ready; its own message is above")
        return True

    def _watch(self, stopped: socket.socket) -> None:
        while True:
            children = [*self._workers, *self._apis]
            happened = wait([self._ready, stopped, *(child.sentinel for child in children)])
            if stopped in happened:
                return
            if self._ready in happened:
                self._ready.recv_bytes()
            for worker in self._workers:
                if worker.sentinel in happened:
                    worker.join()
                    raise ServiceError(
                        f"{worker.name} ended with status {worker.exitcode}: the service ends too"
                    )
            for index, process in enumerate(self._apis):
                if process.sentinel in happened:
                    self._replace(index, process)

    def _replace(self, index: int, process: BaseProcess) -> None:
        process.join()
        forget_process(process.pid or 0)
        if self._workers or time.monotonic() - self._started_at[index] < _QUICK_DEATH_S:
            raise ServiceError(f"{process.name} ended with status {process.exitcode}: the service ends too")
        print(
            f"distillery-serve: {process.name} ended with status {process.exitcode}; starting it again",
            flush=True,
        )
        self._apis[index] = self._start_api(index)
        self._started_at[index] = time.monotonic()

    def _end(self) -> None:
        """End the API processes with their answers given, then the workers."""
        for group in (self._apis, self._workers):
            for process in group:
                process.terminate()
            deadline = time.monotonic() + self._patience
            for process in group:
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
