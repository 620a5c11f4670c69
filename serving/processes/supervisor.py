"""The parent process: it starts, watches, replaces and ends its children.

A child that dies is started again at once; one that stops sending heartbeats is killed first. A child that dies again
and again is started after growing pauses, and ends the service after the last of them.

uvicorn has a supervisor as well. It is not used, because it starts all processes on one shared socket, spawns rather
than forks them, knows no workers, and has its heartbeat answered by a thread, which an event loop that hangs does not
stop.
"""

import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from distillery import notify
from serving.processes.lifeline import Lifeline, Monitor
from serving.processes.sockets import ServiceError

HANG_SECONDS = 5.0
"""Without a heartbeat, after which a child is killed."""
START_SECONDS = 60.0
"""For a replacement to become ready."""
STABLE_SECONDS = 10.0
"""A child that lives longer has not crashed because of its start."""
PAUSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Seconds before a child that died is started again, by the number of its previous crashes."""
CHECK_SECONDS = 0.25
"""Between two checks of the children."""


def can_fork() -> bool:
    """Return whether processes can be forked after libraries have started threads, as macOS's own do not allow."""
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


class Child:
    """A process that is replaced when it dies or hangs."""

    def __init__(
        self,
        name: str,
        start: Callable[[Lifeline], BaseProcess],
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        """`start` starts the process, `on_death` is called before it is replaced."""
        self.name = name
        self.monitor = Monitor()
        self._start = start
        self._on_death = on_death
        self._process: BaseProcess | None = None
        self._started = 0.0
        self._crashes = 0
        self._restart_at = 0.0

    def start(self) -> None:
        """Start the process."""
        self.monitor.close()
        self.monitor = Monitor()
        self._started = time.monotonic()
        self._process = self._start(self.monitor.lifeline)

    @property
    def ready(self) -> bool:
        """Whether the process has sent its first heartbeat."""
        return self.monitor.last_beat is not None

    @property
    def handles(self) -> tuple[int, ...]:
        """What to wait on for heartbeats, messages and the end of the process."""
        if self._process is None:
            return ()
        return self.monitor.fileno(), self.monitor.channel.fileno(), self._process.sentinel

    def ended(self) -> int | None:
        """Return the exit status of the process; None while it runs."""
        if self._process and not self._process.is_alive():
            return self._process.exitcode
        return None

    def check(self, *, delayed: bool) -> None:
        """Replace the process if it has died or hangs; `delayed`: it may only seem to hang. Raises `ServiceError`."""
        now = time.monotonic()
        self.monitor.receive()
        if self._process is None:
            if now >= self._restart_at:
                self.start()
            return
        if delayed and self.ready:
            self.monitor.last_beat = now
        alive, limit = self.monitor.last_beat or self._started, HANG_SECONDS if self.ready else START_SECONDS
        if now - alive > limit:
            _report(f"{self.name} has not responded for {limit:g} s; killing it")
            self._process.kill()
            self._process.join()
        if (status := self.ended()) is not None:
            self._schedule_restart(now, status)

    def _schedule_restart(self, now: float, status: int) -> None:
        assert self._process  # noqa: S101 - it has ended
        self._on_death()
        end = self.describe_end(status)
        self._process.close()
        self._process = None
        if now - self._started > STABLE_SECONDS:
            self._crashes = 0
        if self._crashes == len(PAUSES):
            raise ServiceError(
                f"{self.name} has ended {self._crashes + 1} times, each within {STABLE_SECONDS:g} s of its start, "
                f"the last time with {end}: the service ends too"
            )
        pause = PAUSES[self._crashes]
        self._crashes += 1
        self._restart_at = now + pause
        when = f" in {pause:g} s" if pause else ""
        _report(f"{self.name} ended with {end}; restarting it{when}")

    def describe_end(self, status: int) -> str:
        """Return the exit status and, if the process has sent one, the reason."""
        self.monitor.receive()  # what it sent last
        return describe_status(status) + (f" ({self.monitor.failure})" if self.monitor.failure else "")

    def terminate(self) -> None:
        """Ask the process to end; a stopped one ends as soon as it is continued, or is killed by `join`."""
        if self._process:
            self._process.terminate()

    def join(self, deadline: float) -> None:
        """Wait for the end of the process until `deadline` (`time.monotonic`), then kill it."""
        if self._process:
            self._process.join(max(0.0, deadline - time.monotonic()))
            if self._process.is_alive():
                self._process.kill()
                self._process.join()


class Supervisor:
    """Starts the workers and the API processes, and keeps them running until SIGTERM or SIGINT."""

    def __init__(
        self,
        workers: Sequence[Child],
        apis: Sequence[Child],
        *,
        delay: float,
        patience: float,
        on_check: Callable[[Sequence[Child]], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """`delay` is the pause before a shutdown begins, `patience` the time it may take, in seconds.

        `on_check` is called with the API processes before children are replaced, and at least every `CHECK_SECONDS`;
        `on_end` before they end.
        """
        self._workers = workers
        self._apis = apis
        self._children = (*workers, *apis)
        self._delay = delay
        self._patience = patience
        self._on_check = on_check
        self._on_end = on_end

    def run(self, on_ready: Callable[[], None]) -> None:
        """Run until a signal, then end all children. Raises `ServiceError`."""
        with _stop_signals() as stop:
            try:
                if self._start(self._workers, stop) and self._start(self._apis, stop):
                    on_ready()
                    self._watch(stop, None)
                    self._drain(stop)
            finally:
                self._end()

    def _start(self, children: Sequence[Child], stop: socket.socket) -> bool:
        """Start some of the children and wait until they are ready; return False on a signal to stop."""
        for child in children:
            child.start()
        while not all(child.ready for child in children):
            if self._wait(stop, None):
                return False
            for child in self._children:
                child.monitor.receive()
                if (status := child.ended()) is not None:
                    end = child.describe_end(status)
                    raise ServiceError(
                        child.monitor.failure
                        or f"{child.name} ended with {end} before the service was ready; see its message above"
                    )
        return True

    def _watch(self, stop: socket.socket, until: float | None) -> None:
        """Replace children that die or hang, until a signal to stop or until a time."""
        checked = time.monotonic()
        while until is None or time.monotonic() < until:
            if self._wait(stop, CHECK_SECONDS):
                return
            # After a pause of the whole service (a stopped container), the heartbeats are old as well.
            delayed = time.monotonic() - checked > 4 * CHECK_SECONDS
            checked = time.monotonic()
            self._on_check(self._apis)
            for child in self._children:
                child.check(delayed=delayed)

    def _drain(self, stop: socket.socket) -> None:
        """Let load balancers notice that the service is not ready, while it still serves."""
        if self._delay:
            for child in self._apis:
                child.monitor.drain()
            self._watch(stop, time.monotonic() + self._delay)

    def _wait(self, stop: socket.socket, seconds: float | None) -> bool:
        """Wait for an event at a child; return whether a signal to stop has arrived."""
        handles = [handle for child in self._children for handle in child.handles]
        if stop not in wait([stop, *handles], seconds):
            return False
        stop.recv(64)
        return True

    def _end(self) -> None:
        """End the API processes, which complete their requests, then the workers."""
        self._on_end()
        for group in (self._apis, self._workers):
            for child in group:
                child.terminate()
            deadline = time.monotonic() + self._patience
            for child in group:
                child.join(deadline)


@contextmanager
def _stop_signals() -> Iterator[socket.socket]:
    """Receive a byte on the socket for each SIGTERM and SIGINT."""
    receiver, sender = socket.socketpair()
    before = {
        number: signal.signal(number, lambda *_: sender.send(b"."))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield receiver
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        receiver.close()
        sender.close()


def describe_status(status: int) -> str:
    """Return an exit status as a shell's user knows it: `status 1`, `SIGKILL`."""
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            pass
    return f"status {status}"


def _report(text: str) -> None:
    notify(f"distillery-serve: {text}")
