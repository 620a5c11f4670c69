"""The parent process: it opens the listening sockets, and starts, watches and ends its children.

Each API process has a `SO_REUSEPORT` socket of its own, because on a shared one most keep-alive connections sometimes
reach the same process. Where the kernel does not balance such sockets (anywhere but on Linux), all API processes
share one. API processes are forked, which shares the memory of everything imported; where this is unsafe (macOS) or
impossible, they are spawned and build the service again.

An API process that dies is replaced, while its socket queues new connections. The death of a model worker ends the
service, because the worker may have held a lock of the shared queue.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from distillery import DistilleryError

_MIN_LIFETIME_S = 1.0  # a process that dies earlier would only die again


class ServiceError(DistilleryError):
    """The service cannot start or continue."""


Kind = tuple[socket.AddressFamily, socket.SocketKind, int]
Listeners = Sequence[socket.socket]
"""The listening socket of each API process, by its index."""


def can_fork() -> bool:
    """Return whether processes can be forked after libraries have started threads, as macOS's own do not allow."""
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def bind(host: str, port: int, count: int) -> Listeners:
    """Open listening sockets on one address for `count` API processes; port 0 selects a free one.

    Raises `ServiceError`.
    """
    kind, address = free_address(host, port, "--port")
    balanced = sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")
    listeners = []
    for _ in range(count if balanced else 1):
        listener = socket.socket(*kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if balanced:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(2048)
        listeners.append(listener)
    return listeners if balanced else listeners * count


def free_address(host: str, port: int, flag: str) -> tuple[Kind, Any]:
    """Return an unused address and the kind of socket for it. Raises `ServiceError` naming `flag`."""
    try:
        family, type_, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ServiceError(f"--host {host} is not an address of this machine: {error.strerror}") from None
    # With SO_REUSEPORT two services could share a port unnoticed, so try without it first.
    kind = (family, type_, protocol)
    with socket.socket(*kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ServiceError(
                f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}; "
                f"choose another {flag} or stop the program that uses it"
            ) from None
        return kind, probe.getsockname()


def format_address(bound: socket.socket) -> str:
    """Return a socket's address in the form of URLs."""
    name, number = bound.getsockname()[:2]
    return f"[{name}]:{number}" if ":" in name else f"{name}:{number}"


def end_with_parent() -> None:
    """In a child: exit when the parent has ended, even by SIGKILL."""
    parent = parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class Supervisor:
    """Starts the children, waits until all are ready, then until SIGTERM, SIGINT or the death of a worker."""

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
        """Run until a signal, then end all children. Raises `ServiceError` when a child's death ends the service."""
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
        """Wait until `count` children are ready; return False on a signal to stop."""
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
            raise ServiceError(f"{dead.name} ended before it was ready; see its message above")
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
        if self._workers or time.monotonic() - self._started_at[index] < _MIN_LIFETIME_S:
            raise ServiceError(f"{process.name} ended with status {process.exitcode}: the service ends too")
        print(
            f"distillery-serve: {process.name} ended with status {process.exitcode}; restarting it",
            flush=True,
        )
        self._apis[index] = self._start_api(index)
        self._started_at[index] = time.monotonic()

    def _end(self) -> None:
        """End the API processes, which complete their requests, then the workers."""
        for group in (self._apis, self._workers):
            for process in group:
                process.terminate()
            deadline = time.monotonic() + self._patience
            for process in group:
                process.join(max(0.0, deadline - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
