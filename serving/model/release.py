"""The release file `release.json` of a model repository: its aliases, and what the candidate is given.

    {"stable": "student/1", "candidate": "student/2", "share": 0.1, "shadow": 0.05}

Requests that name no model, and those to `stable`, are for the stable version; a `share` of them goes to the candidate
instead, and a share `shadow` of those answered by the stable version is repeated by the candidate for comparison.
`serving.release` changes the file when a candidate is started, promoted or rolled back.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillery import errors, unknown
from distillery.files import write_atomically
from serving.model.repository import ALIASES, NAME, RELEASE_FILE, RepositoryError
from serving.model.versions import Snapshot, Version

_TARGET = re.compile(rf"({NAME.pattern})(?:/([1-9][0-9]{{0,8}}))?")
_MAX_BYTES = 16 * 1024


class ReleaseError(RepositoryError):
    """An invalid release. The message names the value and the fix."""


def _target(text: str) -> str:
    if not _TARGET.fullmatch(text) or text in ALIASES:
        raise ValueError(f"{text[:80]!r} is not a model or a version of one, such as student or student/2")
    return text


Target = Annotated[str, AfterValidator(_target)]
"""A model, whose highest version is meant, or a version of one: `student`, `student/2`."""
Share = Annotated[float, Field(ge=0, le=1)]


class Rule(BaseModel):
    """When a candidate is rolled back or promoted without a person: `serving.release.rule`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    alpha: Annotated[
        float,
        Field(
            gt=0, lt=0.5, description="probability of a wrong decision for a criterion, however long it runs"
        ),
    ] = 0.05
    tolerance: Annotated[
        float,
        Field(gt=1, le=100, description="ratio of rates that is excluded before a candidate is promoted"),
    ] = 2.0
    criteria: Annotated[
        tuple[Literal["failed", "wrong", "unaccepted", "slow"], ...],
        Field(
            min_length=1,
            description="rates of the candidate that are compared with those of the stable version",
        ),
    ] = ("failed", "wrong", "unaccepted", "slow")
    slow_ms: Annotated[
        float | None,
        Field(
            gt=0,
            description="limit of the criterion slow; default: twice the stable version's p99 at the start",
        ),
    ] = None
    min_requests: Annotated[int, Field(ge=1, description="of the candidate, before it is promoted")] = 500
    promote: Annotated[bool, Field(description="promote by rule; without it, the rule only rolls back")] = (
        True
    )


class Release(BaseModel):
    """The aliases and the candidate's shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    stable: Target
    candidate: Target | None = None
    share: Annotated[Share, Field(description="of the stable version's requests, for the candidate")] = 0.0
    shadow: Annotated[
        Share,
        Field(description="of the stable version's requests, repeated by the candidate off the request path"),
    ] = 0.0
    sticky: Annotated[
        Literal["request", "key"],
        Field(description="requests with the same X-Request-ID, or API key, get the same version"),
    ] = "request"
    rule: Annotated[Rule | None, Field(description="null: only a person decides")] = None
    started: Annotated[
        float, Field(ge=0, description="when the candidate was started, seconds since 1970")
    ] = 0.0

    @model_validator(mode="after")
    def _needs_candidate(self) -> Self:
        if self.candidate is None and (self.share or self.shadow or self.rule):
            raise ValueError("share, shadow and rule need a candidate")
        return self

    def target(self, alias: str) -> Version | None:
        """Return the model and the version that an alias names; the version is empty for the highest one."""
        named = self.stable if alias == ALIASES[0] else self.candidate
        if named is None:
            return None
        name, _, version = named.partition("/")
        return name, version

    def pinned(self) -> set[Version]:
        """Return the versions that must stay loaded."""
        targets = filter(None, map(self.target, ALIASES))
        return {(name, version) for name, version in targets if version}

    def check(self, snapshot: Snapshot) -> None:
        """Check that the aliases name what is served. Raises `ReleaseError`."""
        for alias in ALIASES:
            if (target := self.target(alias)) is None:
                continue
            name, version = target
            versions = snapshot.versions.get(name)
            if versions is None:
                why = snapshot.rejected.get((name, ""), "")
                raise ReleaseError(
                    f"{alias}: {unknown('model', name, list(snapshot.versions))}{why and f': {why}'}"
                )
            if version and version not in versions:
                why = snapshot.rejected.get((name, version), "")
                raise ReleaseError(
                    f"{alias}: there is no version {version} of {name}, which has {', '.join(versions)}"
                    f"{why and f': {why}'}"
                )
        if self.candidate and self.resolve(snapshot, ALIASES[0]) == self.resolve(snapshot, ALIASES[1]):
            raise ReleaseError(f"candidate: {self.candidate} is the stable version; name another one")

    def resolve(self, snapshot: Snapshot, alias: str) -> Version | None:
        """Return the served version that an alias names."""
        if (target := self.target(alias)) is None:
            return None
        name, version = target
        return name, version or snapshot.latest[name].manifest.version


def read_release(root: Path) -> Release | None:
    """Return the release of a repository, None without a file. Raises `ReleaseError`."""
    path = root / RELEASE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReleaseError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ReleaseError(
            f"{path} has more than {_MAX_BYTES:,} bytes; expected a release, as `release` writes it"
        )
    return parse_release(content, str(path))


def parse_release(content: bytes, place: str) -> Release:
    """Return the release in a JSON document. Raises `ReleaseError`, which names `place`."""
    try:
        return Release.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseError(f"{place}: {'; '.join(errors(error, Release))}") from None


def write_release(root: Path, release: Release) -> None:
    """Replace the release file. Raises `distillery.files.FileError`."""
    content = release.model_dump_json(indent=2, exclude_defaults=True) + "\n"
    write_atomically(root / RELEASE_FILE, content.encode())
