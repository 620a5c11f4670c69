"""Score parts in processes of this machine.

Inputs may be hostile, and their decoders are written in C++: a file that crashes one ends a process, which is replaced,
and the others continue; one that expands without end reaches the limit of a process's memory. A process whose parent
has died ends at its next message. Processes are spawned: forking one that has run onnxruntime or Arrow copies locks
that their threads hold.
"""

import multiprocessing
import resource
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from distillery import DistilleryError
from serving.scoring.inputs.base import Part
from serving.scoring.output import Done, Output
from serving.scoring.score import Scorer

MAX_PROCESS_BYTES = 4 << 30
"""Memory that a process may allocate, where the system limits it (Linux); scoring takes a twentieth of it."""
_REPORT_S = 0.1


class Progress(NamedTuple):
    """Items of a part that is being scored, since the last report."""

    scored: int
    rejected: int


class Lost(NamedTuple):
    """A part whose process died."""

    part: Part
    reason: str


Update = Progress | Done | Lost


def score_parts(parts: Iterable[Part], scorer: Scorer, output: Output, processes: int) -> Generator[Update]:
    """Score and write every part, in `processes` processes; 0: in this one. Raises `DistilleryError`.

    Parts are taken from the iterable as processes become free.
    """
    if processes:
        yield from _in_processes(iter(parts), scorer, output, processes)
        return
    for part in parts:
        scored = scorer.score(part)
        yield Progress(len(scored.predictions), len(scored.rejected))
        yield output.write(part, scored)


class Worker:
    """A process that scores and writes one part at a time."""

    def __init__(self, scorer: Scorer, output: Output) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, scorer, output), daemon=True
        )
        # The process inherits the mask: Ctrl-C reaches this one alone, which ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def begin(self, part: Part) -> None:
        """Score a part; `receive` returns what becomes of it."""
        self._part = part
        with suppress(BrokenPipeError):  # it has died, which receiving notices
            self.pipe.send(part)

    def receive(self) -> Update:
        """Wait for a message; after `Done` the next part can begin, after `Lost` the process has ended.

        Raises what the process raised, a `DistilleryError`.
        """
        try:
            message: Update | DistilleryError = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.pipe.close()
            return Lost(self._part, f"its process ended with status {self._process.exitcode}")
        if isinstance(message, DistilleryError):
            raise message
        return message

    def kill(self) -> None:
        """End the process; what it has not finished is absent, and scored by the next run."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _in_processes(parts: Iterator[Part], scorer: Scorer, output: Output, processes: int) -> Iterator[Update]:
    working: dict[Connection, Worker] = {}
    idle: list[Worker] = []
    try:
        for part in parts:
            worker = idle.pop() if idle else Worker(scorer, output)
            working[worker.pipe] = worker
            worker.begin(part)
            while len(working) == processes:
                yield from _receive(working, idle)
        while working:
            yield from _receive(working, idle)
    finally:
        for worker in [*idle, *working.values()]:
            worker.kill()


def _receive(working: dict[Connection, Worker], idle: list[Worker]) -> Iterator[Update]:
    """Wait for messages; move processes that have finished to `idle`. Raises what a process raised."""
    for pipe in wait(list(working)):
        assert isinstance(pipe, Connection)  # noqa: S101
        worker = working[pipe]
        update = worker.receive()
        if not isinstance(update, Progress):
            del working[pipe]
        if isinstance(update, Done):
            idle.append(worker)
        yield update


def _work(pipe: Connection, scorer: Scorer, output: Output) -> None:
    """Score the parts that arrive until the parent has gone."""
    _limit_memory()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            part = pipe.recv()
            reports = _Reports(pipe.send)
            try:
                scored = scorer.score(part, reports.add)
                reports.send()
                pipe.send(output.write(part, scored))
            except DistilleryError as error:
                pipe.send(error)


class _Reports:
    """Reports progress ten times a second: a message takes as long as scoring several images."""

    def __init__(self, send: Callable[[Progress], object]) -> None:
        self._send = send
        self._sent, self._waiting = time.monotonic(), Progress(0, 0)

    def add(self, scored: int, rejected: int) -> None:
        """Count items."""
        self._waiting = Progress(self._waiting.scored + scored, self._waiting.rejected + rejected)
        if time.monotonic() - self._sent > _REPORT_S:
            self.send()

    def send(self) -> None:
        """Report what has been counted since the last report."""
        self._send(self._waiting)
        self._sent, self._waiting = time.monotonic(), Progress(0, 0)


def _limit_memory() -> None:
    """Let an allocation fail rather than the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > MAX_PROCESS_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_PROCESS_BYTES, hard))
