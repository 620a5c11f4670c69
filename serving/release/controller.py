"""Changes of what is served, in the parent process: one at a time, in all API processes or in none.

A change is asked for by an API process (an admin route), by SIGHUP, or by the watch of the repository. It passes these
steps, each of which can reject it while the models in use keep serving:

1. plan: the repository is read and verified (hash, signature, operators), and a `Deployment` planned;
2. trial: a process of its own opens what is new, warms it up and runs its sample (`serving.release.trial`);
3. prepare: every API process opens it next to what is in use;
4. commit: every API process exchanges it, between two batches.

A process that is replaced meanwhile starts with what was served, and prepares and commits the rest on its own.
"""

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import log10
from typing import Any

from distillery import DistilleryError
from serving.config import ServiceSettings
from serving.engine.metrics.series import (
    RELEASE_DECISION_TIME,
    RELEASE_DECISIONS,
    RELEASE_EVIDENCE,
    Metrics,
)
from serving.engine.models import Deployment
from serving.engine.shared_memory import SharedMemoryError
from serving.model.release import Candidate, Release, Rule, read_release, write_release
from serving.model.signature import PublicKeys
from serving.model.versions import UNLOADED, Snapshot, Version, load_snapshot
from serving.processes.channel import Attached
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
from serving.release.rule import Comparisons
from serving.release.trial import Trial
from serving.release.watch import RepositoryWatch

PREPARE_SECONDS = 60.0
COMMIT_SECONDS = 5.0
MAX_DECISIONS = 100
"""That are remembered."""
RETIRED_SECONDS = 30.0
"""After which the metrics of a version that is no longer served may make room for those of another one."""

_logger = logging.getLogger("distillery")


class ChangeError(DistilleryError):
    """A change that is rejected. The message names the value and the fix."""


class UnknownNameError(ChangeError):
    """A change of what does not exist."""


Plan = Callable[[Deployment], Deployment]
"""Returns the deployment after a change. Raises `DistilleryError`."""
Reply = Callable[[Refusal | None, Any], None]


@dataclass
class Change:
    """A change that waits, or is being made."""

    name: str
    """For the log, such as `reload`."""
    plan: Plan
    reply: Reply = lambda _error, _value: None
    after: Callable[[Deployment], Any] = lambda _deployment: None
    """Called once the change is made; returns what the client receives."""
    target: Deployment | None = None
    trial: Trial | None = None
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
        self._metrics = metrics
        self._keys = keys
        self._on_change = on_change
        self._waiting: deque[Change] = deque()
        self._change: Change | None = None
        self._retired: dict[Version, float] = {}
        self._prepared: set[Monitor] = set()
        self._committed: set[Monitor] = set()
        """That have been told to commit what was sent to them last."""
        self._sent: dict[Monitor, int] = {}
        self._generation = deployment.generation
        self._decisions: deque[dict[str, Any]] = deque(maxlen=MAX_DECISIONS)
        self._persisted = True
        self._trial: Comparisons | None = None
        self._trial_of: tuple[str, float, Rule | None] | None = None
        self._judge_at = 0.0
        self._reason = ""
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

    def reload(self, only: str | None = None) -> Change:
        """Return the change to what the repository contains now, or what it contains of one model."""

        def plan(before: Deployment) -> Deployment:
            release = read_release(self._settings.models_dir) or before.release
            snapshot = load_snapshot(
                self._settings.models_dir,
                self._keys,
                previous=before.snapshot,
                pinned=release.pinned(),
                unloaded=before.snapshot.unloaded - {only},
                only=only,
            )
            if only and only not in snapshot.versions:
                if whys := [why for (name, _), why in snapshot.rejected.items() if name == only]:
                    raise ChangeError("; ".join(whys))
                raise UnknownNameError(
                    f"there is no model {only[:80]!r} in the repository; this service has "
                    f"{', '.join(snapshot.versions)}"
                )
            return self._planned(before, snapshot, release)

        return Change(
            f"load of {only}" if only else "reload", plan, after=lambda _: self._report_rejected(only)
        )

    def unload(self, name: str) -> Change:
        """Return the change that stops serving a model."""

        def plan(before: Deployment) -> Deployment:
            versions = before.snapshot.versions
            if name not in versions:
                raise UnknownNameError(
                    f"there is no model {name[:80]!r}; this service has {', '.join(versions)}"
                )
            for alias in ("stable", "candidate"):
                if (target := before.release.target(alias)) and target[0] == name:
                    raise ChangeError(f"{name} is the {alias} model; name another one as {alias} first")
            for entry in before.snapshot:
                rule = entry.manifest.cascade
                if rule and entry.name != name and name in {rule.student.name, rule.teacher.name}:
                    raise ChangeError(f"the cascade {entry.name} needs {name}; unload {entry.name} first")
            snapshot = replace(
                before.snapshot,
                versions={one: found for one, found in versions.items() if one != name},
                rejected={**before.snapshot.rejected, (name, ""): UNLOADED},
            )
            return self._planned(before, snapshot, before.release)

        return Change(f"unload of {name}", plan)

    def start(self, document: Mapping[str, Any]) -> Change:
        """Return the change that gives a candidate its shares, or changes those of the present one."""

        def plan(before: Deployment) -> Deployment:
            wanted = Candidate.parse(document)
            name, _, version = wanted.candidate.partition("/")
            stable = _named(before, before.release.stable)
            pins = {(name, version)} if version else set()
            snapshot = before.snapshot
            if version not in snapshot.versions.get(name, {}) or not version:
                pins |= before.release.pinned() | {stable}
                snapshot = load_snapshot(
                    self._settings.models_dir,
                    self._keys,
                    previous=snapshot,
                    pinned=pins,
                    unloaded=snapshot.unloaded - {name},
                    only=name,
                )
            candidate = name, version or _highest(snapshot, name)
            if why := snapshot.rejected.get(candidate):
                raise ChangeError(f"{name}/{candidate[1]} was not loaded: {why}")
            if candidate[1] not in snapshot.versions.get(name, {}):
                raise UnknownNameError(_no_version(snapshot, *candidate))
            target = "/".join(candidate)
            same = target == before.release.candidate
            release = Release(
                stable="/".join(stable),
                candidate=target,
                share=wanted.share,
                shadow=wanted.shadow,
                sticky=wanted.sticky,
                rule=wanted.rule,
                previous=before.release.previous,
                started=before.release.started if same else time.time(),
            )
            if wanted.shadow and any(
                snapshot.versions[one][number].manifest.cascade for one, number in (stable, candidate)
            ):
                raise ChangeError("shadow: a cascade cannot be mirrored; use a share of the requests instead")
            return self._planned(before, snapshot, release)

        return Change("start of a candidate", plan, after=partial(self._decided, "start", "person"))

    def promote(self, by: str = "person") -> Change:
        """Return the change that makes the candidate the stable version."""

        def plan(before: Deployment) -> Deployment:
            release = before.release
            if release.candidate is None:
                raise ChangeError("there is no candidate to promote; start one first")
            promoted = Release(stable=release.candidate, previous="/".join(_named(before, release.stable)))
            return self._planned(before, before.snapshot, promoted)

        return Change("promotion", plan, after=partial(self._decided, "promote", by))

    def rollback(self, by: str = "person") -> Change:
        """Return the change that ends the candidate or, without one, returns to the previous stable version."""

        def plan(before: Deployment) -> Deployment:
            release = before.release
            if release.candidate:
                ended = Release(stable=release.stable, previous=release.previous)
            elif release.previous:
                ended = Release(stable=release.previous)
            else:
                raise ChangeError("there is neither a candidate nor a previous stable version to return to")
            return self._planned(before, before.snapshot, ended)

        return Change("rollback", plan, after=partial(self._decided, "rollback", by))

    def _decided(self, decision: str, by: str, after: Deployment) -> dict[str, Any]:
        """Record a decision; return the state of the release for the client."""
        release = after.release
        reason = self._reason if by == "rule" else ""
        totals = self._metrics.row(self._metrics.processes - 1)
        count = totals.of(RELEASE_DECISIONS, decision=decision, by=by)
        count += 1
        totals.of(RELEASE_DECISION_TIME, decision=decision)[...] = time.time()
        self._decisions.append(
            {
                "time": time.time(),
                "decision": decision,
                "by": by,
                "stable": release.stable,
                "candidate": release.candidate,
                "reason": reason,
            }
        )
        _logger.warning(
            "release: %s by %s%s: stable %s, candidate %s",
            decision, by, f" ({reason})" if reason else "", release.stable, release.candidate or "none",
        )  # fmt: skip
        self._persisted = self._write(release)
        self._trial = None
        totals.of(RELEASE_EVIDENCE)[...] = 0
        self._reason = ""
        return self.status()

    def _write(self, release: Release) -> bool:
        """Write the release file; return whether that was possible."""
        try:
            write_release(self._settings.models_dir, release)
        except DistilleryError as error:
            _logger.error("%s; the release is valid until the service ends", error)
            return False
        return True

    def status(self) -> dict[str, Any]:
        """Return the release, the evidence for and against the candidate, and the last decisions."""
        deployment = self.deployment
        evidence = self._trial.evidence() if self._trial else {}
        return {
            **deployment.release.model_dump(mode="json", exclude={"previous"}),
            "stable": "/".join(_named(deployment, deployment.release.stable)),
            "previous": deployment.release.previous,
            "persisted": self._persisted,
            "slow_ms": self._trial.slow_ms if self._trial else None,
            "criteria": {name: one._asdict() for name, one in evidence.items()},
            "decisions": list(self._decisions),
        }

    def _judge(self) -> None:
        """Compare candidate and stable version once a second, and decide by the rule if there is one."""
        release, now = self.deployment.release, time.monotonic()
        if release.candidate is None or now < self._judge_at or self._change or self._waiting:
            return
        self._judge_at = now + 1
        totals = self._metrics.totals()
        slots = self.deployment.slots
        key = release.candidate, release.started, release.rule
        if self._trial is None or self._trial_of != key:
            stable, candidate = (
                slots[_named(self.deployment, one)] for one in (release.stable, release.candidate)
            )
            self._trial, self._trial_of = Comparisons(release.rule or Rule(), stable, candidate, totals), key
        verdict = self._trial.update(totals)
        row = self._metrics.row(self._metrics.processes - 1)
        for name, one in self._trial.evidence().items():
            for hypothesis, value in (("worse", one.worse), ("as_good", one.as_good)):
                row.of(RELEASE_EVIDENCE, criterion=name, hypothesis=hypothesis)[...] = log10(
                    max(value, 1e-300)
                )
        if release.rule is None or verdict is None:
            return
        if verdict == "worse":
            self._reason = self._trial.worst()
            self.ask(self.rollback("rule"))
        elif release.rule.promote:
            self._reason = f"as good in {', '.join(release.rule.criteria)}"
            self.ask(self.promote("rule"))

    def end(self) -> None:
        """Give up what is not complete, when the service ends."""
        if self._change and self._change.trial:
            self._change.trial.stop()

    def ask(self, change: Change) -> None:
        """Make a change as soon as those before it are made."""
        self._waiting.append(change)

    # The steps, called by the supervisor several times a second.

    def step(self, children: Sequence[Child]) -> None:
        """Receive messages, and do what can be done without waiting."""
        ready = [child.monitor for child in children if child.ready]
        for child in children:
            for message in child.monitor.channel.receive():
                self._handle(child.monitor, message.read() if isinstance(message, Attached) else message)
        self._reload_due |= self._watch is not None and self._watch.changed()
        if self._change is None and self._reload_due:
            self._reload_due = False
            self._begin(self.reload())
        if self._change is None and self._waiting:
            self._begin(self._waiting.popleft())
        if self._change:
            self._continue(self._change, ready)
        self._update(ready)
        self._judge()

    def _handle(self, monitor: Monitor, message: object) -> None:
        match message:
            case Asked(number, "status", _):
                _send_result(monitor, number, None, self.status())
            case Asked(number, action, arguments):
                change = self._asked(action, arguments)
                change.reply = partial(_send_result, monitor, number)
                self.ask(change)
            case Serving(generation):
                monitor.generation = generation
            case Prepared(generation) if generation == self._sent.get(monitor):
                self._prepared.add(monitor)
            case Failed(generation) if generation == self.deployment.generation:
                monitor.channel.send(Commit(generation))  # which it cannot: it ends, and is replaced
            case Failed(generation, reason) if self._change and self._change.target:
                if generation == self._change.target.generation:
                    self._end(self._change, ChangeError(f"a process cannot load it: {reason}"))

    def _asked(self, action: str, arguments: Mapping[str, Any]) -> Change:
        """Return the change that an API process asks for."""
        if action == "load":
            return self.reload(only=arguments["model"])
        if action == "unload":
            return self.unload(arguments["model"])
        if action == "start":
            return self.start(arguments["document"])
        return self.promote() if action == "promote" else self.rollback()

    def _begin(self, change: Change) -> None:
        self._change = change
        before = self.deployment
        try:
            if self._settings.executor == "workers":
                raise ChangeError(
                    "models change while the service runs only with --executor inprocess; restart the service"
                )
            change.target = change.plan(before)
        except DistilleryError as error:
            self._end(change, error)
            return
        known = {entry.version_key: entry.manifest for entry in before.snapshot}
        new = [entry for entry in change.target.snapshot if known.get(entry.version_key) != entry.manifest]
        if new:
            change.trial = Trial(new, self._settings.threads, self._settings.device)
        change.deadline = time.monotonic() + PREPARE_SECONDS

    def _continue(self, change: Change, ready: Sequence[Monitor]) -> None:
        if change.trial:
            if (failures := change.trial.failures()) is None:
                return
            change.trial = None
            change.deadline = time.monotonic() + PREPARE_SECONDS
            if failures and not self._replan(change, failures):
                return
        target = change.target
        assert target  # noqa: S101 - planned
        if change.is_decided:
            committed = all(monitor.generation in {None, target.generation} for monitor in ready)
            # One that hangs will be replaced by a process with the new models.
            if committed or time.monotonic() > change.deadline:
                self._finish(change)
        elif self._differs(target):
            self._commit_if_prepared(change, target, ready)
        else:
            self.deployment = replace(target, generation=self.deployment.generation)
            self._finish(change)

    def _commit_if_prepared(self, change: Change, target: Deployment, ready: Sequence[Monitor]) -> None:
        try:
            for monitor in ready:
                self._prepare(monitor, target)
        except SharedMemoryError as error:
            self._end(change, error)
            return
        if all(monitor in self._prepared for monitor in ready):
            self.deployment = target
            self._on_change(target)
            change.is_decided, change.deadline = True, time.monotonic() + COMMIT_SECONDS
        elif time.monotonic() > change.deadline:
            self._end(change, ChangeError(f"not all processes had loaded it within {PREPARE_SECONDS:g} s"))

    def _replan(self, change: Change, failures: Mapping[Version, str]) -> bool:
        """Plan again without the versions that failed; return whether the change goes on."""
        before, target = self.deployment, change.target
        assert target  # noqa: S101 - planned
        snapshot = target.snapshot.without(failures, before.snapshot)
        try:
            change.target = self._planned(before, snapshot, target.release)
        except DistilleryError as error:
            self._end(change, error)
            return False
        return True

    def _planned(self, before: Deployment, snapshot: Snapshot, release: Release) -> Deployment:
        """Return the deployment of a snapshot, with slots for its versions. Raises `ChangeError`, `ReleaseError`."""
        release.check(snapshot)
        slots = dict(before.slots)
        now = time.monotonic()
        wanted = [entry.version_key for entry in snapshot]
        free = {str(slot) for slot in range(self._metrics.slots)} - set(slots.values())
        retired = sorted(
            (since, version)
            for version, since in self._retired.items()
            if version not in wanted and now - since > RETIRED_SECONDS
        )
        for version in wanted:
            if version in slots:
                continue
            if not free and retired:
                _, gone = retired.pop(0)
                del self._retired[gone]
                free.add(slot := slots.pop(gone))
                self._metrics.clear(int(slot))
            if not free:
                raise ChangeError(
                    f"{self._metrics.slots} versions are or were served in the last {RETIRED_SECONDS:g} s, and there "
                    "is no room for the metrics of another one; retry later, or serve fewer versions"
                )
            slots[version] = min(free, key=int)
            free.discard(slots[version])
        self._generation += 1
        return Deployment(self._generation, snapshot, slots, release)  # new slots: /metrics is rendered again

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
        if self._sent.get(monitor) != target.generation and monitor.channel.send(Prepare(target)):
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

    def _finish(self, change: Change) -> None:
        now = time.monotonic()
        served = {entry.version_key for entry in self.deployment.snapshot}
        for version in self.deployment.slots:
            if version in served:
                self._retired.pop(version, None)
            else:
                self._retired.setdefault(version, now)
        self._change = None
        try:
            value = change.after(self.deployment)
        except DistilleryError as error:
            self._reject(change, error)
            return
        _logger.warning("%s: %s", change.name, describe(self.deployment))
        change.reply(None, value)

    def _end(self, change: Change, error: DistilleryError) -> None:
        """End a change that is rejected."""
        if change.trial:
            change.trial.stop()
        if change.target:
            for monitor in self._sent:
                monitor.channel.send(Abort(change.target.generation))
            self._sent.clear()
        self._change = None
        self._reject(change, error)

    def _reject(self, change: Change, error: DistilleryError) -> None:
        _logger.error("%s rejected, what was served before still is: %s", change.name, error)
        change.reply(Refusal(str(error), isinstance(error, UnknownNameError)), None)

    def _report_rejected(self, only: str | None) -> None:
        """Raise the first error of a model that was to be loaded, or log those of all."""
        rejected = self.deployment.snapshot.rejected
        for (name, version), why in rejected.items():
            if why == UNLOADED:
                continue
            if name == only:
                raise ChangeError(f"{name}{version and f'/{version}'} was not loaded: {why}")
            if only is None:
                _logger.error("%s%s is not served: %s", name, version and f"/{version}", why)


def _named(deployment: Deployment, target: str) -> Version:
    """Return the version that a target means at present."""
    name, _, version = target.partition("/")
    return name, version or _highest(deployment.snapshot, name)


def _highest(snapshot: Snapshot, name: str) -> str:
    """Return the highest version of a model. Raises `UnknownNameError`."""
    if name not in snapshot.latest:
        raise UnknownNameError(
            f"there is no model {name[:80]!r}; the repository has {', '.join(snapshot.versions)}"
        )
    return snapshot.latest[name].manifest.version


def _no_version(snapshot: Snapshot, name: str, version: str) -> str:
    found = snapshot.versions.get(name)
    if found is None:
        return f"there is no model {name[:80]!r}; the repository has {', '.join(snapshot.versions)}"
    return (
        f"there is no version {version!r} of model {name!r} in the repository; {', '.join(found)} are served"
    )


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
