"""Changes of what is served, in the parent process: one at a time, in all API processes or in none.

A change is asked for by an API process (an admin route), by SIGHUP, or by the watch of the repository. It passes these
steps, each of which can reject it while the models in use keep serving:

1. plan: the repository is read and verified (hash, signature, operators);
2. trial: what is new is opened, warmed up, and runs its sample, like the plan in a process of its own
   (`serving.release.trial`); a `Deployment` is made of the rest;
3. prepare: one API process after the other opens it next to what is in use;
4. commit: every API process exchanges it, between two batches.

A process that is replaced meanwhile starts with what was served, and prepares and commits the rest on its own.
"""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from distillery import DistilleryError
from serving.config import ServiceSettings
from serving.engine.metrics.series import (
    Metrics,
)
from serving.engine.models import Deployment
from serving.engine.shared_memory import SharedMemoryError
from serving.model.signature import PublicKeys
from serving.processes.channel import Attached, Encoded
from serving.processes.lifeline import Monitor
from serving.processes.messages import (
    Abort,
    Asked,
    Commit,
    Failed,
    Prepare,
    Prepared,
    Refusal,
    Result,
    Serving,
)
from serving.processes.supervisor import Child
from serving.release.changes import Change, ChangeError, Changes, Plan, UnknownNameError
from serving.release.decisions import Decisions
from serving.release.slots import SlotTable
from serving.release.trial import Trial
from serving.release.watch import RepositoryWatch

PREPARE_SECONDS = 60.0
COMMIT_SECONDS = 5.0

_logger = logging.getLogger("distillery")


Reply = Callable[[Refusal | None, Any], None]


@dataclass
class _Running:
    """A change that is being made."""

    change: Change
    reply: Reply = lambda _error, _value: None
    trial: Trial | None = None
    plan: Plan | None = None
    target: Deployment | None = None
    deadline: float = 0.0
    is_decided: bool = False
    """Whether the processes have been told to commit."""


class Controller:
    """What the service serves, and the changes of it."""

    def __init__(
        self,
        settings: ServiceSettings,
        deployment: Deployment,
        metrics: Metrics,
        keys: PublicKeys | None,
        on_change: Callable[[Deployment], None] = lambda _: None,
    ) -> None:
        """`on_change` is called with every deployment that is committed, for processes that start later."""
        self.deployment = deployment
        self._settings = settings
        self._decisions = Decisions(settings.models_dir, metrics)
        self._changes = Changes(settings.models_dir, keys, self._decisions.record)
        self._slots = SlotTable(metrics)
        self._on_change = on_change
        self._waiting: deque[_Running] = deque()
        self._running: _Running | None = None
        self._prepared: set[Monitor] = set()
        self._committed: set[Monitor] = set()
        """That have been told to commit what was sent to them last."""
        self._encoded: tuple[int, Encoded] | None = None
        """What processes are told to prepare, and its generation, while a change is made."""
        self._sent: dict[Monitor, int] = {}
        self._generation = deployment.generation
        self._reload_due = False
        self._watch = RepositoryWatch(settings.models_dir) if settings.watch else None

    # What asks for changes.

    def handle_hangup(self) -> None:
        """Reload on SIGHUP, as servers do; end if its sender was the terminal, which has closed."""
        has_terminal = os.isatty(0)

        def on_signal(*_: object) -> None:
            if has_terminal and not os.isatty(0):
                os.kill(os.getpid(), signal.SIGTERM)
            self._reload_due = True

        signal.signal(signal.SIGHUP, on_signal)

    def end(self) -> None:
        """Give up what is not complete, when the service ends."""
        if self._running and self._running.trial:
            self._running.trial.stop()

    def ask(self, change: Change, reply: Reply = lambda _error, _value: None) -> None:
        """Make a change as soon as those before it are made; `reply` receives the result."""
        self._waiting.append(_Running(change, reply))

    # The steps, called by the supervisor several times a second.

    def step(self, children: Sequence[Child]) -> None:
        """Receive messages, and do what can be done without waiting."""
        ready = [child.monitor for child in children if child.ready]
        for child in children:
            for message in child.monitor.channel.receive():
                self._handle(child.monitor, message.read() if isinstance(message, Attached) else message)
        self._reload_due |= self._watch is not None and self._watch.changed()
        if self._running is None and self._reload_due:
            self._reload_due = False
            self._waiting.appendleft(_Running(self._changes.reload()))
        if self._running is None and self._waiting:
            self._begin(self._waiting.popleft())
        if self._running:
            self._continue(self._running, ready)
        self._update(ready)
        if self._running is None and not self._waiting:
            decision = self._decisions.judge(self.deployment)
            if decision:
                self.ask(
                    self._changes.promote("rule") if decision == "promote" else self._changes.rollback("rule")
                )

    def _handle(self, monitor: Monitor, message: object) -> None:
        match message:
            case Asked(number, "status", _):
                _send_result(monitor, number, None, self._decisions.state(self.deployment))
            case Asked(number, action, arguments):
                self.ask(self._changes.asked(action, arguments), partial(_send_result, monitor, number))
            case Serving(generation):
                monitor.generation = generation
            case Prepared(generation) if generation == self._sent.get(monitor):
                self._prepared.add(monitor)
                if self._running:
                    self._running.deadline = time.monotonic() + PREPARE_SECONDS
            case Failed(generation) if generation == self.deployment.generation:
                monitor.channel.send(Commit(generation))  # which it cannot: it ends, and is replaced
            case Failed(generation, reason) if self._running and self._running.target:
                if generation == self._running.target.generation:
                    self._end(self._running, ChangeError(f"a process cannot load it: {reason}"))

    def _begin(self, running: _Running) -> None:
        self._running = running
        try:
            if self._settings.executor == "workers":
                raise ChangeError(
                    "models change while the service runs only with --executor inprocess; restart the service"
                )
            if running.change.reads:
                settings = self._settings
                running.trial = Trial(running.change.plan, self.deployment, settings.threads, settings.device)
            else:
                self._decide(running, running.change.plan(self.deployment))
        except DistilleryError as error:
            self._end(running, error)

    def _continue(self, running: _Running, ready: Sequence[Monitor]) -> None:
        if running.trial:
            try:
                if plan := running.trial.outcome():
                    running.trial.stop()
                    running.trial = None
                    self._decide(running, plan)
            except DistilleryError as error:
                self._end(running, error)
        if running.target:
            self._make(running, running.target, ready)

    def _decide(self, running: _Running, plan: Plan) -> None:
        """Make the deployment of a plan. Raises `ChangeError`, `ReleaseError`."""
        plan.release.check(plan.snapshot)
        self._generation += 1
        # Always new slots, even if equal: /metrics is rendered again.
        slots = self._slots.assign(self.deployment.slots, plan.snapshot)
        running.plan = plan
        run_times = {**self.deployment.run_times, **plan.run_times}
        run_times = {
            key: run_times[key] for entry in plan.snapshot if (key := entry.version_key) in run_times
        }
        running.target = Deployment(self._generation, plan.snapshot, slots, plan.release, run_times)
        running.deadline = time.monotonic() + PREPARE_SECONDS

    def _make(self, running: _Running, target: Deployment, ready: Sequence[Monitor]) -> None:
        """Bring the API processes to what is decided, as far as possible without waiting."""
        if running.is_decided:
            committed = all(monitor.generation in {None, target.generation} for monitor in ready)
            # One that hangs will be replaced by a process with the new models.
            if committed or time.monotonic() > running.deadline:
                self._finish(running)
        elif self._differs(target):
            self._commit_if_prepared(running, target, ready)
        else:
            self.deployment = replace(target, generation=self.deployment.generation)
            self._finish(running)

    def _commit_if_prepared(self, running: _Running, target: Deployment, ready: Sequence[Monitor]) -> None:
        try:
            for monitor in ready:  # one after the other, so that most of the cores serve
                self._prepare(monitor, target)
                if monitor not in self._prepared:
                    break
        except SharedMemoryError as error:
            self._end(running, error)
            return
        if all(monitor in self._prepared for monitor in ready):
            self.deployment = target
            self._on_change(target)
            running.is_decided, running.deadline = True, time.monotonic() + COMMIT_SECONDS
        elif time.monotonic() > running.deadline:
            self._end(running, ChangeError(f"a process had not loaded it within {PREPARE_SECONDS:g} s"))

    def _differs(self, target: Deployment) -> bool:
        """Return whether the processes must do anything for `target`: its reasons alone are told to them as well."""
        before = self.deployment
        return (
            target.snapshot.versions != before.snapshot.versions  # also of the model cards
            or target.release != before.release
            or target.snapshot.rejected != before.snapshot.rejected
            or target.snapshot.policies != before.snapshot.policies
        )

    def _prepare(self, monitor: Monitor, target: Deployment) -> None:
        if self._sent.get(monitor) == target.generation:
            return
        if self._encoded is None or self._encoded[0] != target.generation:
            self._encoded = target.generation, Encoded(Prepare(target))
        if monitor.channel.send(self._encoded[1]):
            self._sent[monitor] = target.generation
            self._prepared.discard(monitor)
            self._committed.discard(monitor)

    def _update(self, ready: Iterable[Monitor]) -> None:
        """Have every process commit what is decided, also one that has started since."""
        alive = set(ready)
        self._prepared &= alive
        self._committed &= alive
        self._sent = {monitor: sent for monitor, sent in self._sent.items() if monitor in alive}
        generation = self.deployment.generation
        for monitor in alive:
            if monitor.generation in {None, generation}:  # None: it has not reported yet
                continue
            with suppress(SharedMemoryError):  # tried again at the next step
                self._prepare(monitor, self.deployment)
            is_prepared = monitor in self._prepared and self._sent.get(monitor) == generation
            if is_prepared and monitor not in self._committed and monitor.channel.send(Commit(generation)):
                self._committed.add(monitor)
        if self._running is None and all(monitor.generation in {None, generation} for monitor in alive):
            self._encoded = None

    def _finish(self, running: _Running) -> None:
        self._slots.note(self.deployment.slots, self.deployment.snapshot)
        self._running = None
        try:
            assert running.plan  # noqa: S101 - decided
            value = running.change.after(self.deployment, running.plan)
        except DistilleryError as error:
            self._reject(running, error)
            return
        _logger.warning("%s: %s", running.change.name, describe(self.deployment))
        running.reply(None, value)

    def _end(self, running: _Running, error: DistilleryError) -> None:
        """End a change that is rejected."""
        if running.trial:
            running.trial.stop()
        if running.target:
            for monitor in self._sent:
                monitor.channel.send(Abort(running.target.generation))
            self._sent.clear()
        self._running = None
        self._reject(running, error)

    def _reject(self, running: _Running, error: DistilleryError) -> None:
        _logger.error("%s rejected, what was served before still is: %s", running.change.name, error)
        running.reply(Refusal(str(error), isinstance(error, UnknownNameError)), None)


def _send_result(monitor: Monitor, number: int, error: Refusal | None, value: Any) -> None:
    monitor.channel.send(Result(number, error, value))


def describe(deployment: Deployment) -> str:
    """Return what is served, for the log."""
    versions = (f"{name}/{','.join(versions)}" for name, versions in deployment.snapshot.versions.items())
    release = deployment.release
    candidate = (
        f", candidate {release.candidate} with a share of {release.share:g}" if release.candidate else ""
    )
    return f"serving {', '.join(versions)}; stable {release.stable}{candidate}"
