"""The trial of models before they are served: in a process of its own, which a harmful file can end, and no other.

A model is opened and warmed up, and runs the sample in its manifest, whose outputs must be those that were measured
when it was exported.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from distillery import DistilleryError
from serving.model.graph_check import GraphError
from serving.model.repository import ModelEntry
from serving.model.sample import check_sample
from serving.model.session import Device, Session
from serving.model.versions import Version
from serving.processes.supervisor import can_fork

TRIAL_SECONDS = 60.0
"""For all models of a trial."""


class Trial:
    """A trial that runs."""

    def __init__(self, entries: Sequence[ModelEntry], threads: int, device: Device) -> None:
        """Start the process."""
        self._entries = entries
        self._failures: dict[Version, str] = {}
        self._tested = 0
        self._deadline = time.monotonic() + TRIAL_SECONDS
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork" if can_fork() else "spawn")
        self._process = context.Process(  # type: ignore[attr-defined] # of both contexts
            target=_run, args=(entries, threads, device, sender), name="trial of models", daemon=True
        )
        self._process.start()
        sender.close()

    @property
    def handle(self) -> Connection:
        """What to wait on."""
        return self._receiver

    def failures(self) -> Mapping[Version, str] | None:
        """Return which models failed and why, None while the trial runs."""
        with suppress(EOFError, OSError):
            while self._receiver.poll():
                version, error = self._receiver.recv()
                self._tested += 1
                if error:
                    self._failures[version] = error
        if self._tested < len(self._entries):
            if self._process.is_alive():
                if time.monotonic() < self._deadline:
                    return None
                self._process.kill()
                self._fail_rest(f"its trial did not end within {TRIAL_SECONDS:g} s")
            else:
                self._process.join()
                self._fail_rest(f"its trial ended the process with status {self._process.exitcode}")
        self._process.join()
        self._process.close()
        self._receiver.close()
        return self._failures

    def stop(self) -> None:
        """End the trial early."""
        self._process.kill()
        self._process.join()

    def _fail_rest(self, reason: str) -> None:
        first, *others = self._entries[self._tested :]
        self._failures[first.version_key] = f"{first.path}: {reason}; export the model again"
        for entry in others:
            self._failures[entry.version_key] = (
                f"{entry.path} was not tried: the trial of {first.path} failed first"
            )


def _run(entries: Sequence[ModelEntry], threads: int, device: Device, sender: Connection) -> None:
    with suppress(OSError):
        os.nice(19)
    for entry in entries:
        error = None
        if entry.manifest.cascade:  # its models are tried
            sender.send((entry.version_key, error))
            continue
        try:
            session = Session(entry.content, threads=threads, device=device)
            check_sample(entry.manifest, session)
        except (DistilleryError, GraphError) as failure:
            error = f"{entry.path} is not a graph that this service runs: {failure}; export the model again"
        sender.send((entry.version_key, error))
    os._exit(0)  # without the end of what was inherited from the parent
