"""The models of one process: an endpoint for each served version, replaced together between two batches.

The parent process decides what is served, a `Deployment`. A process prepares its endpoints next to those in use, on a
thread, and exchanges them in one step of its event loop. Requests in flight keep the endpoint that they began with.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any, Literal, NamedTuple, Protocol
from zlib import crc32

from serving.codecs.errors import UnknownModel, unknown_model
from serving.engine.metrics.series import Slots
from serving.engine.request import Endpoint
from serving.model.release import Release
from serving.model.repository import ALIASES, CANDIDATE, STABLE, Manifest, ModelEntry
from serving.model.session import RunTimes
from serving.model.versions import Snapshot, Version


class IndexEntry(NamedTuple):
    """A version in the index of the repository, as Triton has it."""

    name: str
    version: str
    """Empty: the model as a whole."""
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = ""


class Change(Protocol):
    """Asks the parent process for a change of what is served, and returns its result. Raises `RequestError`."""

    async def __call__(self, action: str, **arguments: Any) -> Any: ...


@dataclass(frozen=True)
class Deployment:
    """What all processes of a service serve."""

    generation: int
    """Counts the changes since the service started."""
    snapshot: Snapshot
    slots: Slots
    """Also of versions that are no longer served, until another one takes their slot over."""
    release: Release
    run_times: Mapping[Version, RunTimes] = field(default_factory=dict)
    """Of versions that were loaded while the service runs, measured by their trials."""

    @property
    def default(self) -> str:
        """The name of the model for requests that name none."""
        return self.release.stable.partition("/")[0]

    @property
    def aliases(self) -> list[str]:
        """The aliases that name something."""
        return [alias for alias in ALIASES if self.release.target(alias)]

    @property
    def names(self) -> list[str]:
        """The names that clients may use: of models, and the aliases."""
        return [*self.snapshot.versions, *self.aliases]

    def index(self) -> Iterator[IndexEntry]:
        """Yield all versions of all models: those that are served, then those that are not.

        One that is served may have a reason as well: why its present files are not.
        """
        rejected = dict(self.snapshot.rejected)
        for entry in self.snapshot:
            yield IndexEntry(*entry.version_key, "READY", rejected.pop(entry.version_key, ""))
        for (name, version), why in rejected.items():
            yield IndexEntry(name, version, "UNAVAILABLE", why)

    def find(self, name: str, version: str = "") -> Version:
        """Return the served version that a client names, by model or alias. Raises `UnknownModel`.

        Without a version, it is the highest one.
        """
        served = self.snapshot.manifests
        if name in ALIASES and (target := self.release.target(name)):
            alias, (name, pinned) = name, target
            if version and pinned not in {"", version}:
                raise UnknownModel(f"{alias} is version {pinned} of {name}, not {version[:80]!r}")
            version = version or pinned
        versions = served.get(name)
        if versions is None:
            raise unknown_model(name, self.names)
        if version and version not in versions:
            raise UnknownModel(
                f"there is no version {version[:80]!r} of model {name!r}; it has {', '.join(versions)}"
            )
        return name, version or [*versions][-1]

    def manifest(self, name: str, version: str = "") -> Manifest:
        """Return the manifest of what a client names. Raises `UnknownModel`."""
        name, version = self.find(name, version)
        return self.snapshot.manifests[name][version]


class Split(NamedTuple):
    """The share of the stable version's requests that goes to the candidate."""

    candidate: Endpoint
    limit: int
    """The share, of 2³²."""
    salt: int
    """Another one for every candidate, so that not always the same clients get it."""
    by_key: bool
    """Whether requests with the same API key, rather than the same id, get the same version."""

    def choose(self, stable: Endpoint, api_key: bytes, request_id: bytes) -> Endpoint:
        """Return the version that serves a request; one with neither key nor id is assigned by chance."""
        name = api_key if self.by_key else request_id
        draw = crc32(name, self.salt) if name else getrandbits(32)
        return self.candidate if draw < self.limit else stable


Endpoints = Mapping[Version, Endpoint]
OpenEndpoint = Callable[[ModelEntry, Deployment, Endpoints], Awaitable[Endpoint]]
"""Loads a model of a deployment, without holding up the event loop. Raises `DistilleryError`.

A cascade uses the endpoints of its two models, which are open already.
"""


class ServedModels:
    """The deployment of this process and, once it serves, the endpoints."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.endpoints: Endpoints = {}
        self.split: Split | None = None

    async def prepare(self, deployment: Deployment, open_endpoint: OpenEndpoint) -> Endpoints:
        """Return the endpoints of another deployment: those of unchanged files are the present ones."""
        endpoints: dict[Version, Endpoint] = {}
        for entry in sorted(deployment.snapshot, key=lambda one: one.manifest.cascade is not None):
            key = entry.version_key
            present = self.endpoints.get(key)
            if (
                present
                and present.api.entry.manifest == entry.manifest
                and self._has_models(entry, endpoints)
            ):
                endpoints[key] = present
            else:
                endpoints[key] = await open_endpoint(entry, deployment, endpoints)
                await asyncio.sleep(0)
        return endpoints

    def _has_models(self, entry: ModelEntry, endpoints: Endpoints) -> bool:
        """Return whether the endpoints of a cascade's models are the present ones; true for any other entry."""
        rule = entry.manifest.cascade
        return rule is None or all(
            endpoints[member.key] is self.endpoints.get(member.key) for member in (rule.student, rule.teacher)
        )

    def exchange(self, deployment: Deployment, endpoints: Endpoints) -> Endpoints:
        """Serve another deployment from now on; return the endpoints that it replaces."""
        replaced = {
            version: endpoint
            for version, endpoint in self.endpoints.items()
            if endpoints.get(version) is not endpoint
        }
        self.deployment, self.endpoints = deployment, endpoints
        self.split = self._split()
        return replaced

    def find(self, name: str, version: str = "") -> Endpoint:
        """Return the endpoint of what a client names. Raises `UnknownModel`."""
        return self.endpoints[self.deployment.find(name, version)]

    def choose(self, name: str, version: str, api_key: bytes, request_id: bytes) -> Endpoint:
        """Return the endpoint for a request that names a model, as `find` does; `stable` is split."""
        endpoint = self.find(name, version)
        if self.split and name == STABLE:
            return self.split.choose(endpoint, api_key, request_id)
        return endpoint

    def _split(self) -> Split | None:
        release = self.deployment.release
        if not release.candidate or not release.share:
            return None
        salt = crc32(f"{release.candidate} {release.started}".encode())
        return Split(self.find(CANDIDATE), round(release.share * 2**32), salt, release.sticky == "key")
