"""The changes of what is served: of the models, of the aliases, and of the candidate's shares.

Each is a plan, which reads what it needs from the repository and does nothing else; `serving.release.controller` makes
it. A plan that reads files is made in a process of its own (`serving.release.trial`).
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from distillery import DistilleryError
from serving.engine.models import Deployment
from serving.model.release import Candidate, Release, read_release
from serving.model.repository import ModelEntry
from serving.model.session import RunTimes
from serving.model.signature import PublicKeys
from serving.model.versions import UNLOADED, Snapshot, Version, load_snapshot

_logger = logging.getLogger("distillery")


class ChangeError(DistilleryError):
    """A change that is rejected. The message names the value and the fix."""


class UnknownNameError(ChangeError):
    """A change of what does not exist."""


class Plan(NamedTuple):
    """What is to be served."""

    snapshot: Snapshot
    release: Release
    written: Release | None = None
    """What the release file contained, if it was read."""
    run_times: Mapping[Version, RunTimes] = {}
    """Of the models that were tried."""

    def new(self, before: Deployment) -> list[ModelEntry]:
        """Return the models that `before` does not contain as they are now."""
        known = {entry.version_key: entry.manifest for entry in before.snapshot}
        return [entry for entry in self.snapshot if known.get(entry.version_key) != entry.manifest]

    def without(self, failures: Mapping[Version, str], before: Deployment) -> Self:
        """Return the plan without versions that failed, each replaced by what `before` contains."""
        if not failures:
            return self
        return self._replace(snapshot=self.snapshot.without(failures, before.snapshot))


@dataclass(frozen=True)
class Change:
    """A change requested by a client, by SIGHUP, by the watch of the repository, or by a rule."""

    name: str
    """For the log, such as `reload`."""
    plan: Callable[[Deployment], Plan]
    """Returns what is to be served instead of a deployment. Raises `DistilleryError`."""
    reads: bool = False
    """Whether the plan reads files; it can be pickled then."""
    after: Callable[[Deployment, Plan], Any] = lambda _, __: None
    """Called once the change is made; returns what the client receives. Raises `ChangeError`."""


class Changes:
    """The changes of one repository; `record` is called with the decision, who made it, and what is served then."""

    def __init__(
        self, models_dir: Path, keys: PublicKeys | None, record: Callable[[str, str, Deployment], Any]
    ) -> None:
        self._models_dir, self._keys, self._record = models_dir, keys, record
        self._followed = read_release(models_dir)
        """What the release file contained when it was followed last."""

    def asked(self, action: str, arguments: Mapping[str, Any]) -> Change:
        """Return the change that an API process asks for."""
        match action:
            case "load":
                return self.reload(arguments["model"])
            case "unload":
                return self.unload(arguments["model"])
            case "start":
                return self.start(arguments["document"])
            case "promote":
                return self.promote()
        return self.rollback()

    def reload(self, only: str | None = None) -> Change:
        """Return the change to what the repository contains now, or what it contains of one model."""

        def after(deployment: Deployment, plan: Plan) -> None:
            self._followed = plan.written
            _report_rejected(only, deployment)

        plan = partial(_reloaded, self._models_dir, self._keys, self._followed, only)
        return Change(f"load of {only}" if only else "reload", plan, reads=True, after=after)

    def unload(self, name: str) -> Change:
        """Return the change that stops serving a model."""

        def plan(before: Deployment) -> Plan:
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
            return Plan(snapshot, before.release)

        return Change(f"unload of {name}", plan)

    def start(self, document: Mapping[str, Any]) -> Change:
        """Return the change that gives a candidate its shares, or changes those of the present one."""
        plan = partial(_started, self._models_dir, self._keys, document)
        return Change("start of a candidate", plan, reads=True, after=self._recorded("start", "person"))

    def promote(self, by: str = "person") -> Change:
        """Return the change that makes the candidate the stable version."""

        def plan(before: Deployment) -> Plan:
            release = before.release
            if release.candidate is None:
                raise ChangeError("there is no candidate to promote; start one first")
            promoted = Release(
                stable=release.candidate, previous="/".join(version_of(before, release.stable))
            )
            return Plan(before.snapshot, promoted)

        return Change("promotion", plan, after=self._recorded("promote", by))

    def rollback(self, by: str = "person") -> Change:
        """Return the change that ends the candidate or, without one, returns to the previous stable version."""

        def plan(before: Deployment) -> Plan:
            release = before.release
            if release.candidate:
                ended = Release(stable=release.stable, previous=release.previous)
            elif release.previous:
                ended = Release(stable=release.previous)
            else:
                raise ChangeError("there is neither a candidate nor a previous stable version to return to")
            return Plan(before.snapshot, ended)

        return Change("rollback", plan, after=self._recorded("rollback", by))

    def _recorded(self, decision: str, by: str) -> Callable[[Deployment, Plan], Any]:
        return lambda deployment, _: self._record(decision, by, deployment)


def _reloaded(
    root: Path, keys: PublicKeys | None, followed: Release | None, only: str | None, before: Deployment
) -> Plan:
    # A file that has not changed is not followed again: a decision that could not be written stays valid.
    written = read_release(root)
    release = before.release if written is None or written == followed else written
    snapshot = load_snapshot(
        root,
        keys,
        previous=before.snapshot,
        pinned=release.pinned(),
        unloaded=before.snapshot.unloaded - {only},
        only=only,
    )
    if only and only not in snapshot.versions:
        if whys := [why for (name, _), why in snapshot.rejected.items() if name == only]:
            raise ChangeError("; ".join(whys))
        raise UnknownNameError(
            f"there is no model {only[:80]!r} in the repository; this service has {', '.join(snapshot.versions)}"
        )
    return Plan(snapshot, release, written)


def _started(root: Path, keys: PublicKeys | None, document: Mapping[str, Any], before: Deployment) -> Plan:
    wanted = Candidate.parse(document)
    name, _, version = wanted.candidate.partition("/")
    stable = version_of(before, before.release.stable)
    pins = {(name, version)} if version else set()
    snapshot = before.snapshot
    if version not in snapshot.versions.get(name, {}) or not version:
        pins |= before.release.pinned() | {stable}
        snapshot = load_snapshot(
            root,
            keys,
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
    return Plan(snapshot, release)


def version_of(deployment: Deployment, target: str) -> Version:
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


def _report_rejected(only: str | None, deployment: Deployment) -> None:
    """Raise the first error of a model that was to be loaded, or log those of all."""
    rejected = deployment.snapshot.rejected
    for (name, version), why in rejected.items():
        if why == UNLOADED:
            continue
        if name == only:
            raise ChangeError(f"{name}{version and f'/{version}'} was not loaded: {why}")
        if only is None:
            _logger.error("%s%s is not served: %s", name, version and f"/{version}", why)
