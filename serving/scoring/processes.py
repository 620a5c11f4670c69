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
from multiprocessing.process import BaseProcess
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


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


def _in_processes(parts: Iterator[Part], scorer: Scorer, output: Output, processes: int) -> Iterator[Update]:
    working: dict[Connection, tuple[_Worker, Part]] = {}
    idle: list[_Worker] = []
    try:
        for part in parts:
            worker = idle.pop() if idle else _start(scorer, output)
            working[worker.pipe] = worker, part
            with suppress(BrokenPipeError):  # it has died, which receiving notices
                worker.pipe.send(part)
            while len(working) == processes:
                yield from _receive(working, idle)
        while working:
            yield from _receive(working, idle)
    finally:
        for worker in [*idle, *(worker for worker, _ in working.values())]:
            worker.process.kill()  # what it has not finished is absent, and scored by the next run
            worker.process.join()
            worker.pipe.close()


def _receive(working: dict[Connection, tuple[_Worker, Part]], idle: list[_Worker]) -> Iterator[Update]:
    """Wait for messages; move processes that have finished to `idle`. Raises what a process raised."""
    for pipe in wait(list(working)):
        assert isinstance(pipe, Connection)  # noqa: S101
        worker, part = working[pipe]
        try:
            message = pipe.recv()
        except (EOFError, ConnectionResetError):
            del working[pipe]
            worker.process.join()
            worker.pipe.close()
            yield Lost(part, f"its process ended with status {worker.process.exitcode}")
            continue
        if isinstance(message, DistilleryError):
            raise message
        if isinstance(message, Done):
            del working[pipe]
            idle.append(worker)
        yield message


def _start(scorer: Scorer, output: Output) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(theirs, scorer, output), daemon=True
    )
    # The process inherits the mask: Ctrl-C reaches this one alone, which ends the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


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
