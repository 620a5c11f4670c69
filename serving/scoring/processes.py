"""Score parts in processes of this machine.

Each has a session with one thread, and a pipe: a process whose parent has died ends at its next message, and one that
dies is replaced, while the others continue. Processes are spawned: forking one that has run onnxruntime or Arrow
copies locks that their threads hold.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from distillery import DistilleryError
from serving.scoring.inputs.base import Part
from serving.scoring.output import Done, Output
from serving.scoring.score import Scorer


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
    """Score and write every part, in this process or in several. Raises `DistilleryError`.

    Parts are taken from the iterable as processes become free.
    """
    if processes > 1:
        yield from _in_processes(iter(parts), scorer, output, processes)
        return
    for part in parts:
        reports: list[Update] = []
        scored = scorer.score(part, lambda *counts: reports.append(Progress(*counts)))  # noqa: B023 - used up before the next
        yield from reports
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
            worker.pipe.send(part)
            working[worker.pipe] = worker, part
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
    send: Callable[[object], None] = pipe.send
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            part = pipe.recv()
            try:
                scored = scorer.score(part, lambda *counts: send(Progress(*counts)))
                send(output.write(part, scored))
            except DistilleryError as error:
                send(error)
    sys.stderr.flush()
