"""The trial of a change, in a process of its own, which a hanging disk or a harmful file can hold or end, and no other.

It reads and verifies the repository, then opens every model that is new, warms it up, and runs the sample in its
manifest, whose outputs must be those that were measured when it was exported.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from distillery import DistilleryError
from serving.engine.models import Deployment
from serving.model.graph_check import GraphError
from serving.model.repository import ModelEntry
from serving.model.sample import check_sample
from serving.model.session import Device, RunTimes, Session
from serving.model.versions import Version
from serving.processes.channel import Attached, Channel
from serving.processes.lifeline import end_with_parent
from serving.processes.messages import Refusal
from serving.processes.supervisor import can_fork, describe_status
from serving.release.changes import ChangeError, Plan, UnknownNameError

TRIAL_SECONDS = 60.0
"""For each step of a trial: reading the repository, and every model; a longer one ends its process."""
_MAX_REASON = 2000
"""Characters of the reason for a failure."""


class Trial:
    """A trial that runs."""

    def __init__(
        self, plan: Callable[[Deployment], Plan], before: Deployment, threads: int, device: Device
    ) -> None:
        """Start the process. Raises `ChangeError`."""
        self._before = before
        self._threads, self._device = threads, device
        self._plan: Plan | None = None
        self._refusal: Refusal | None = None
        self._waiting: deque[ModelEntry] = deque()
        """Models of which the process will report next."""
        self._failures: dict[Version, str] = {}
        self._run_times: dict[Version, RunTimes] = {}
        self._start(plan)

    def _start(self, plan: Callable[[Deployment], Plan] | None = None) -> None:
        """Start a process that makes the plan, if there is one, and tries the models that wait."""
        self._deadline = time.monotonic() + TRIAL_SECONDS
        self._channel, theirs = Channel.pair()
        context = multiprocessing.get_context("fork" if can_fork() else "spawn")
        self._process = context.Process(  # type: ignore[attr-defined] # of both contexts
            target=_run,
            args=(theirs, plan, self._before, tuple(self._waiting), self._threads, self._device),
            name="trial of models",
            daemon=True,
        )
        try:
            self._process.start()
        except OSError as error:
            raise ChangeError(
                f"cannot start a process for its trial: {error.strerror}; retry later"
            ) from None
        finally:
            theirs.close()

    def outcome(self) -> Plan | None:
        """Return the plan without the models that failed, None while the trial runs. Raises `ChangeError`.

        The process remains until `stop`.
        """
        alive = self._process.is_alive()  # before the last messages are read
        for message in self._channel.receive():
            self._handle(message.read() if isinstance(message, Attached) else message)
        if not self._is_complete and (not alive or time.monotonic() > self._deadline):
            self._end_early()
        if not self._is_complete:
            return None
        if self._refusal:
            raise (UnknownNameError if self._refusal.unknown else ChangeError)(self._refusal.message)
        assert self._plan  # noqa: S101 - complete
        plan = self._plan.without(self._failures, self._before)
        return plan._replace(run_times=self._run_times)

    @property
    def _is_complete(self) -> bool:
        return self._refusal is not None or (self._plan is not None and not self._waiting)

    def _handle(self, message: object) -> None:
        self._deadline = time.monotonic() + TRIAL_SECONDS
        match message:
            case Plan():
                self._plan = message
                self._waiting.extend(message.new(self._before))
            case Refusal():
                self._refusal = message
            case RunTimes() | str() | None:
                self._record(message)

    def _record(self, result: RunTimes | str | None) -> None:
        """Record the result of the next model: its times, why it failed, or nothing for a cascade."""
        version = self._waiting.popleft().version_key
        match result:
            case RunTimes():
                self._run_times[version] = result
            case str():
                self._failures[version] = result

    def _end_early(self) -> None:
        """Record the step during which the process has ended, or which takes too long, and go on with the next."""
        status = self._process.exitcode
        end = (
            f"did not end within {TRIAL_SECONDS:g} s"
            if status is None
            else f"ended its process with {describe_status(status)}"
        )
        if self._plan is None:
            self._refusal = Refusal(f"reading the model repository {end}; check its files and its disk")
            return
        self._record(f"{_place(self._waiting[0])}: its trial {end}; export the model again")
        if self._waiting:  # one model that ends its process harms no other
            self.stop()
            self._start()

    def stop(self) -> None:
        """End the process, if it was started and has not ended."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self._process.close()
        self._channel.close()


def _place(entry: ModelEntry) -> str:
    """Return the path of a model within the repository; clients need not know the other part."""
    return "/".join(entry.path.parts[-3:])


def _run(
    channel: Channel,
    plan: Callable[[Deployment], Plan] | None,
    before: Deployment,
    entries: Sequence[ModelEntry],
    threads: int,
    device: Device,
) -> None:
    """Run the steps of a trial, each of which ends with a message."""
    _isolate()
    if plan:
        try:
            made = plan(before)
            entries = made.new(before)
            _send(channel, made)
        except DistilleryError as error:
            _send(channel, Refusal(str(error), isinstance(error, UnknownNameError)))
        except MemoryError:
            _send(channel, Refusal("not enough memory to read the model repository; serve fewer models"))
    for entry in entries:
        _send(channel, _result(entry, threads, device))
    os._exit(0)  # without the end of what was inherited from the parent


def _result(entry: ModelEntry, threads: int, device: Device) -> RunTimes | str | None:
    """Return the times of a model, or why it cannot be served; None for a cascade, whose models are tried."""
    if entry.manifest.cascade:
        return None
    try:
        session = Session(entry.content, threads=threads, device=device)
        check_sample(entry.manifest, session)
    except (DistilleryError, GraphError, MemoryError) as error:
        reason = (str(error) or "not enough memory")[:_MAX_REASON]
        return f"{_place(entry)} is not a graph that this service runs: {reason}; export the model again"
    return session.run_times


def _send(channel: Channel, message: object) -> None:
    """Send a message as soon as the parent has read some of those before."""
    while not channel.send(message):
        time.sleep(0.01)
    _allow_one_step()


def _isolate() -> None:
    """Let nothing else suffer: the service runs first, this process is the first to end where memory is short.

    It ends with the service, or by a signal that no code of the graph can delay.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # the handlers are those of the parent
    _allow_one_step()
    end_with_parent()
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _allow_one_step() -> None:
    signal.alarm(round(TRIAL_SECONDS) + 5)
