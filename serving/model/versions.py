"""The versions of models that are served: which ones a repository asks for, and the set that was verified.

`models/<name>/config.pbtxt` may have a version policy, in Triton's form; without one, the highest version is served:

    version_policy: { latest { num_versions: 2 } }
    version_policy: { all { } }
    version_policy: { specific { versions: [1, 3] } }
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

from distillery import DistilleryError
from serving.model.repository import (
    Manifest,
    ModelEntry,
    RepositoryError,
    check_cascade,
    load_model,
    model_folders,
    version_folders,
)
from serving.model.signature import PublicKeys

CONFIG_FILE = "config.pbtxt"
_MAX_CONFIG_BYTES = 64 * 1024

Version = tuple[str, str]
"""Name and version of a model."""


UNLOADED = "unloaded"
"""Why a model is not served that an administrator has unloaded."""

Kind = Literal["latest", "all", "specific"]
_LATEST = re.compile("latest(?::([1-9][0-9]{0,8}))?")
_SPECIFIC = re.compile("[1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})*")


class VersionPolicy(NamedTuple):
    """The versions of a model that are served."""

    kind: Kind = "latest"
    number: int = 1
    """Of the highest versions, for `latest`."""
    versions: tuple[int, ...] = ()
    """For `specific`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the policy written as `latest`, `latest:2`, `all` or `1,3`. Raises `ValueError`."""
        if text == "all":
            return cls("all")
        if found := _LATEST.fullmatch(text):
            return cls("latest", int(found[1] or 1))
        if _SPECIFIC.fullmatch(text):
            return cls("specific", versions=tuple(sorted(set(map(int, text.split(","))))))
        raise ValueError(
            f"{text[:80]!r} is not a version policy; expected latest:2, all, or versions such as 1,3"
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the policy in a model's `config.pbtxt`. Raises `RepositoryError` for an invalid one."""
        path = folder / CONFIG_FILE
        if not path.is_file():
            return cls()
        with path.open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
        if len(content) > _MAX_CONFIG_BYTES:
            raise RepositoryError(f"{path} has more than {_MAX_CONFIG_BYTES:,} bytes; export the model again")
        try:
            config = text_format.Parse(content, _model_config()(), allow_unknown_field=True)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{path} is not a model configuration of Triton: {error}") from None
        policy: Any = config.version_policy
        found: list[Kind] = [descriptor.name for descriptor, _ in policy.ListFields()]
        if len(found) > 1 or (not found and config.HasField("version_policy")):
            raise RepositoryError(
                f"{path}: version_policy has {' and '.join(found) or 'none of them'}; expected one of latest, all, "
                "specific"
            )
        kind: Kind = found[0] if found else "latest"
        if kind == "specific" and not policy.specific.versions:
            raise RepositoryError(f"{path}: version_policy is specific, but names no version")
        number = max(1, policy.latest.num_versions)  # 0 is Triton's default, too: one
        return cls(kind, number, tuple(policy.specific.versions))

    def choose(self, found: Sequence[int]) -> list[int]:
        """Return which of the versions found, in ascending order, are served."""
        if self.kind == "latest":
            return list(found[-self.number :])
        return [version for version in found if self.kind == "all" or version in self.versions]

    def config(self) -> dict[str, Any]:
        """Return the policy in the form of Triton's model configuration as JSON."""
        if self.kind == "latest":
            return {"latest": {"num_versions": self.number}}
        return {"specific": {"versions": list(self.versions)}} if self.kind == "specific" else {"all": {}}

    def text(self) -> str:
        """Return the line of `config.pbtxt`."""
        inner = {
            "latest": f"latest {{ num_versions: {self.number} }}",
            "all": "all { }",
            "specific": f"specific {{ versions: [ {', '.join(map(str, self.versions))} ] }}",
        }
        return f"version_policy: {{ {inner[self.kind]} }}"


@cache
def _model_config() -> Any:
    """Return a message class with the one field of Triton's `ModelConfig` that is read here."""
    file = FileDescriptorProto(name="distillery_version_policy.proto", package="distillery", syntax="proto2")
    message = FieldDescriptorProto.TYPE_MESSAGE
    for name, fields in (
        ("Latest", {"num_versions": FieldDescriptorProto.TYPE_UINT32}),
        ("All", {}),
        ("Specific", {"versions": FieldDescriptorProto.TYPE_INT64}),
        (
            "Policy",
            {"latest": ".distillery.Latest", "all": ".distillery.All", "specific": ".distillery.Specific"},
        ),
        ("ModelConfig", {"version_policy": ".distillery.Policy"}),
    ):
        kind = file.message_type.add(name=name)
        for index, (field_name, of) in enumerate(fields.items(), 1):
            repeated = field_name == "versions"
            label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
            if isinstance(of, str):
                kind.field.add(name=field_name, number=index, label=label, type=message, type_name=of)
            else:
                kind.field.add(name=field_name, number=index, label=label, type=of)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("distillery.ModelConfig"))


@dataclass(frozen=True)
class Snapshot:
    """The verified versions of all models that are served, at one moment."""

    versions: Mapping[str, Mapping[str, ModelEntry]]
    """By name and version, the lowest version first."""
    policies: Mapping[str, VersionPolicy] = field(default_factory=dict)
    rejected: Mapping[Version, str] = field(default_factory=dict)
    """Why versions of the repository are not served; the version is empty for a model as a whole."""

    @cached_property
    def latest(self) -> Mapping[str, ModelEntry]:
        """The highest served version of each model."""
        return {name: [*versions.values()][-1] for name, versions in self.versions.items()}

    @property
    def unloaded(self) -> set[str]:
        """The models that an administrator has unloaded."""
        return {name for (name, _), why in self.rejected.items() if why == UNLOADED}

    @cached_property
    def manifests(self) -> Mapping[str, Mapping[str, Manifest]]:
        """The manifests by name and version."""
        return {
            name: {version: entry.manifest for version, entry in versions.items()}
            for name, versions in self.versions.items()
        }

    def __iter__(self) -> Iterator[ModelEntry]:
        for versions in self.versions.values():
            yield from versions.values()

    def without(self, failures: Mapping[Version, str], previous: "Snapshot") -> "Snapshot":
        """Return the snapshot without the versions that failed a later check, each replaced by what was served."""
        versions: dict[str, dict[str, ModelEntry]] = {}
        for name, found in self.versions.items():
            failed = [version for version in found if (name, version) in failures]
            good = {version: entry for version, entry in found.items() if version not in failed}
            good = _keep_served(good, failed, previous.versions.get(name, {}), self._policy(name))
            if good:
                versions[name] = good
        rejected = {**self.rejected, **failures}
        return Snapshot(versions, self.policies, rejected).with_whole_cascades(previous)

    def with_whole_cascades(self, previous: "Snapshot | None") -> "Snapshot":
        """Return the snapshot with what was served of each cascade whose models are not in it, or without it.

        Its models are then those that were served with it. Without `previous`, such a cascade is a `RepositoryError`.
        """
        broken = self._broken_cascades()
        if not broken:
            return self
        if previous is None:
            raise next(iter(broken.values()))
        versions = {name: dict(found) for name, found in self.versions.items()}
        rejected = dict(self.rejected)
        for (name, version), error in broken.items():
            entry = versions[name].pop(version)
            rejected[name, version] = _reason(error, entry.path.parent.parent)
        for name in {name for name, _ in broken}:
            failed = [version for one, version in broken if one == name]
            served = previous.versions.get(name, {})
            versions[name] = _keep_served(versions[name], failed, served, self._policy(name))
            for member in previous.members(versions[name].values()):
                found = versions.setdefault(member.name, {})
                number = member.manifest.version
                if found.get(number, member).manifest != member.manifest:
                    rejected[member.version_key] = f"the cascade {name} needs the file that is served"
                found[number] = member
        whole = Snapshot(
            {name: _sorted(found) for name, found in versions.items() if found}, self.policies, rejected
        )
        return whole.with_whole_cascades(Snapshot({}))  # two cascades may need two files of one version

    def members(self, cascades: Iterable[ModelEntry]) -> Iterator[ModelEntry]:
        """Yield the models of those of the cascades that are in this snapshot."""
        for entry in cascades:
            rule = entry.manifest.cascade
            if rule and self.versions.get(entry.name, {}).get(entry.manifest.version) == entry:
                for name, version in (rule.student.key, rule.teacher.key):
                    yield self.versions[name][version]

    def _broken_cascades(self) -> dict[Version, RepositoryError]:
        models = {entry.version_key: entry.manifest for entry in self}
        broken = {}
        for entry in self:
            try:
                check_cascade(entry, models)
            except RepositoryError as error:
                broken[entry.version_key] = error
        return broken

    def _policy(self, name: str) -> VersionPolicy:
        return self.policies.get(name, VersionPolicy())


def load_snapshot(
    root: Path,
    keys: PublicKeys | None = None,
    *,
    previous: Snapshot | None = None,
    pinned: Collection[Version] = (),
    unloaded: Collection[str] = (),
    only: str | None = None,
) -> Snapshot:
    """Read and verify the versions that the policies of the models below `root` name, and those that are `pinned`.

    Without `previous`, an invalid model is an error, as is an invalid repository always: `RepositoryError`,
    `SignatureError`. With it, an invalid version is recorded in `rejected`, and the versions of `previous` that it
    would have replaced stay. Models in `unloaded` are left out. With `only`, the other models are those of `previous`.
    """
    before = previous or Snapshot({})
    found: dict[str, _Found] = {}
    if only is not None:
        others = {*before.versions, *before.policies, *(name for name, _ in before.rejected)} - {only}
        found = {name: _Found.of(before, name) for name in sorted(others)}
    for folder in model_folders(root):
        name = folder.name
        if name in found or only not in {None, name}:
            continue
        if name in unloaded:
            found[name] = _Found(rejected={(name, ""): UNLOADED})
        else:
            wanted = [version for one, version in pinned if one == name]
            served = previous.versions.get(name, {}) if previous else None
            found[name] = _load_versions(folder, keys, wanted, served)
    for name, version in pinned:  # what an alias names stays, even if its files are gone
        if entry := before.versions.get(name, {}).get(version):
            one = found.setdefault(name, _Found())
            if version not in one.versions:
                one.versions = _sorted(one.versions | {version: entry})
                one.rejected.setdefault(
                    entry.version_key, "its files are gone; it is served because an alias names it"
                )
    _add_members(root, keys, found, previous)
    snapshot = Snapshot(
        {name: one.versions for name, one in found.items() if one.versions},
        {name: one.policy for name, one in found.items()},
        {version: why for one in found.values() for version, why in one.rejected.items()},
    )
    return snapshot.with_whole_cascades(previous)


def _add_members(
    root: Path, keys: PublicKeys | None, found: "dict[str, _Found]", previous: Snapshot | None
) -> None:
    """Load the versions that cascades name and version policies do not. Without `previous`, raises `RepositoryError`.

    With it, an invalid version is recorded in `rejected`, and that of `previous` stays.
    """
    for name, version in {member for one in found.values() for member in one.needs}:
        one = found.get(name)
        if one is None or version in one.versions or not (root / name / version).is_dir():
            continue  # a missing one is an error of the cascade
        try:
            one.versions = _sorted(one.versions | {version: load_model(root / name / version, keys)})
        except DistilleryError as error:
            if previous is None:
                raise
            one.rejected[name, version] = _reason(error, root / name)
            if entry := previous.versions.get(name, {}).get(version):
                one.versions = _sorted(one.versions | {version: entry})


@dataclass
class _Found:
    """What a repository contains of one model."""

    versions: dict[str, ModelEntry] = field(default_factory=dict)
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    rejected: dict[Version, str] = field(default_factory=dict)

    @property
    def needs(self) -> set[Version]:
        """The versions of other models that cascades name."""
        rules = [entry.manifest.cascade for entry in self.versions.values()]
        return {
            (member.name, member.version) for rule in rules if rule for member in (rule.student, rule.teacher)
        }

    @classmethod
    def of(cls, snapshot: Snapshot, name: str) -> Self:
        """Return what is served already."""
        rejected = {version: why for version, why in snapshot.rejected.items() if version[0] == name}
        policy = snapshot.policies.get(name, VersionPolicy())
        return cls(dict(snapshot.versions.get(name, {})), policy, rejected)


def _load_versions(
    folder: Path, keys: PublicKeys | None, pinned: Collection[str], served: Mapping[str, ModelEntry] | None
) -> _Found:
    """Read the versions of a model; where one is invalid, what is `served` stays.

    If nothing is served yet (None), an error is raised instead: `RepositoryError`, `SignatureError`.
    """
    name = folder.name
    found = _Found()
    try:
        found.policy = VersionPolicy.read(folder)
        wanted = _wanted(folder, found.policy, pinned)
    except DistilleryError as error:
        if served is None:
            raise
        return _Found(dict(served), rejected={(name, ""): _reason(error, folder)})
    for version in wanted:
        try:
            found.versions[version] = load_model(folder / version, keys)
        except DistilleryError as error:
            if served is None:
                raise
            found.rejected[name, version] = _reason(error, folder)
    failed = [version for version in wanted if version not in found.versions]
    found.versions = _keep_served(found.versions, failed, served or {}, found.policy)
    return found


def _reason(error: DistilleryError, folder: Path) -> str:
    """Return the message of an error without the path of the repository, which clients need not know."""
    return str(error).replace(f"{folder.parent}/", "")


def _wanted(folder: Path, policy: VersionPolicy, pinned: Collection[str]) -> list[str]:
    """Return the versions to serve, in ascending order. Raises `RepositoryError`."""
    found = [int(path.name) for path in version_folders(folder)]
    missing = sorted(set(policy.versions) - set(found))
    if missing:
        raise RepositoryError(
            f"{folder / CONFIG_FILE}: version_policy names version {missing[0]}, but {folder} has "
            f"{', '.join(map(str, found))}"
        )
    chosen = {*policy.choose(found), *(int(version) for version in pinned if int(version) in found)}
    names = {int(path.name): path.name for path in version_folders(folder)}
    return [names[version] for version in sorted(chosen)]


def _keep_served(
    good: Mapping[str, ModelEntry],
    failed: Collection[str],
    served: Mapping[str, ModelEntry],
    policy: VersionPolicy,
) -> dict[str, ModelEntry]:
    """Return the valid versions of a model, and those served before that stay because others have `failed`."""
    kept = dict(good)
    if failed:
        kept |= {version: entry for version, entry in served.items() if version in failed}
        number = policy.number if policy.kind == "latest" else 1
        missing = [version for version in served if version not in kept]  # the highest last
        for version in missing[max(0, len(missing) + len(kept) - number) :]:
            kept[version] = served[version]
    return _sorted(kept)


def _sorted(versions: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    return {version: versions[version] for version in sorted(versions, key=int)}
