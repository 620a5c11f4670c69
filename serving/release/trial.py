"""The trial of models before they are served: in a process of its own, which a harmful file can end, and no other.

A model is opened and warmed up, and runs the sample in its manifest, whose outputs must be those that were measured
when it was exported.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from distillery import DistilleryError
from serving.model.graph_check import GraphError
from serving.model.repository import ModelEntry
from serving.model.sample import check_sample
from serving.model.session import Device, Session
from serving.model.versions import Version
from serving.processes.lifeline import end_with_parent
from serving.processes.supervisor import can_fork, describe_status

TRIAL_SECONDS = 60.0
"""For the models of a trial, of which one that takes longer ends its process."""
_MAX_BYTES = 2000
"""Of the reason for a failure."""


class Trial:
    """A trial that runs."""

    def __init__(self, entries: Sequence[ModelEntry], threads: int, device: Device) -> None:
        """Start the process."""
        self._waiting = deque(entries)
        self._threads, self._device = threads, device
        self._failures: dict[Version, str] = {}
        self._start()

    def _start(self) -> None:
        """Start a process for the models that are not tried yet."""
        self._deadline = time.monotonic() + TRIAL_SECONDS
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork" if can_fork() else "spawn")
        self._process = context.Process(  # type: ignore[attr-defined] # of both contexts
            target=_run,
            args=(tuple(self._waiting), self._threads, self._device, sender),
            name="trial of models",
            daemon=True,
        )
        self._process.start()
        sender.close()

    def failures(self) -> Mapping[Version, str] | None:
        """Return which models failed and why, None while the trial runs."""
        alive = self._process.is_alive()  # before the last results are read
        with suppress(EOFError, OSError):
            while self._waiting and self._receiver.poll():
                self._record(self._receiver.recv_bytes(_MAX_BYTES).decode(errors="replace"))
        if not self._waiting:
            self.stop()
            return self._failures
        if alive and time.monotonic() < self._deadline:
            return None
        status, place = self._process.exitcode, _place(self._waiting[0])
        end = (
            f"did not end within {TRIAL_SECONDS:g} s"
            if status is None
            else f"ended its process with {describe_status(status)}"
        )
        self._record(f"{place}: its trial {end}; export the model again")
        self.stop()
        if self._waiting:  # one that ends its process harms no other
            self._start()
            return None
        return self._failures

    def _record(self, failure: str) -> None:
        """Record the result of the next model: why it failed, or nothing."""
        entry = self._waiting.popleft()
        if failure:
            self._failures[entry.version_key] = failure

    def stop(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._receiver.close()


def _place(entry: ModelEntry) -> str:
    """Return the path of a model within the repository; clients need not know the other part."""
    return "/".join(entry.path.parts[-3:])


def _run(entries: Sequence[ModelEntry], threads: int, device: Device, sender: Connection) -> None:
    _isolate()
    for entry in entries:
        error = ""
        if entry.manifest.cascade:  # its models are tried
            sender.send_bytes(b"")
            continue
        try:
            session = Session(entry.content, threads=threads, device=device)
            check_sample(entry.manifest, session)
        except (DistilleryError, GraphError, MemoryError) as failure:
            reason = str(failure) or "not enough memory"
            error = f"{_place(entry)} is not a graph that this service runs: {reason}; export the model again"
        sender.send_bytes(error.encode()[:_MAX_BYTES])
    os._exit(0)  # without the end of what was inherited from the parent


def _isolate() -> None:
    """Let nothing else suffer: the service runs first, this process is the first to end where memory is short.

    It ends with the service, or by a signal that no code of the graph can delay.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # the handlers are those of the parent
    signal.alarm(round(TRIAL_SECONDS) + 5)
    end_with_parent()
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
