"""The release file `release.json` of a model repository: its aliases, and what the candidate is given.

    {"stable": "student/1", "candidate": "student/2", "share": 0.1, "shadow": 0.05}

Requests that name no model, and those to `stable`, are for the stable version; a `share` of them goes to the candidate
instead, and a share `shadow` of those answered by the stable version is repeated by the candidate for comparison.
`serving.release` changes the file when a candidate is started, promoted or rolled back.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

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


Target = Annotated[
    str,
    AfterValidator(_target),
    WithJsonSchema({"type": "string", "pattern": f"^(?!(?:{'|'.join(ALIASES)})(?:/|$)){_TARGET.pattern}$"}),
]
"""A model, whose highest version is meant, or a version of one: `student`, `student/2`."""
Share = Annotated[float, Field(ge=0, le=1)]


Criterion = Literal["failed", "slow", "unaccepted", "wrong", "shadow"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
"""What a candidate is compared in with the stable version:

failed: share of requests with a status of 500 or above
slow: share of requests slower than `Rule.slow_ms`
unaccepted: share of images whose prediction is not accepted
wrong: share of images that are wrong by feedback
shadow: mirrored images for which the teacher agrees with the stable version alone, of those where it agrees with one
"""


class Rule(BaseModel):
    """When a candidate is rolled back or promoted without a person: `serving.release.rule`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    alpha: Annotated[
        float,
        Field(
            gt=0, lt=0.5, description="bound on the probability of a wrong decision, however long it takes"
        ),
    ] = 0.05
    tolerance: Annotated[
        float,
        Field(gt=1, le=100, description="ratio of the rates that is excluded before a candidate is promoted"),
    ] = 2.0
    negligible: Annotated[
        float,
        Field(gt=0, lt=1, description="rate up to which a criterion is good, whatever the stable version's"),
    ] = 0.01
    criteria: Annotated[
        tuple[Criterion, ...],
        Field(
            min_length=1,
            description="in which a candidate must be as good to be promoted; worse in any that is not ignored ends it",
        ),
    ] = ("failed", "slow", "unaccepted")
    ignored: Annotated[
        tuple[Criterion, ...], Field(description="in which a candidate may be worse; also of `criteria`")
    ] = ()
    slow_ms: Annotated[
        float | None,
        Field(
            gt=0, description="of the criterion slow; default: twice the stable version's p99 at the start"
        ),
    ] = None
    promote: Annotated[bool, Field(description="promote by rule; without it, the rule only rolls back")] = (
        True
    )

    @property
    def required(self) -> list[Criterion]:
        """The criteria in which a candidate must be as good to be promoted; without any, it never is."""
        return [name for name in self.criteria if name not in self.ignored]


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
    previous: Annotated[
        Target | None,
        Field(description="stable version before the last promotion, for a rollback; stays loaded"),
    ] = None
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
        targets = [target.partition("/") for target in (self.stable, self.candidate, self.previous) if target]
        return {(name, version) for name, _, version in targets if version}

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


class Candidate(BaseModel):
    """What an administrator sends to start a candidate, or to change its shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    candidate: Annotated[Target, Field(description="a model, or a version of one: student/2")]
    share: Annotated[Share, Field(description="of the stable version's requests, for the candidate")] = 0.0
    shadow: Annotated[
        Share,
        Field(description="of the stable version's requests, repeated by the candidate off the request path"),
    ] = 0.0
    sticky: Literal["request", "key"] = "request"
    rule: Rule | None = None

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Check a JSON document. Raises `ReleaseError`."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ReleaseError("; ".join(errors(error, cls))) from None


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
