"""The model repository: the contract between `export`, which writes it, and `serving`, which reads it.

    models/<name>/<version>/model.onnx       the graph: image uint8 [N,28,28] to logits and probabilities
    models/<name>/<version>/manifest.json    architecture, test results and origin of the graph
    models/<name>/<version>/manifest.json.sig  its signature, if it was signed (`serving.model.signature`)
    models/<name>/<version>/MODEL_CARD.md    a full report for people, if the training run was reported
    models/<name>/config.pbtxt               configuration for NVIDIA Triton, which reads this layout unchanged

A cascade (`serving.model.cascade`) has no graph: its manifest names the two models that it consists of.

A repository is rejected when any model in it is invalid: a service must not start without one of its models.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillery import DistilleryError
from serving.model.cascade import Cascade
from serving.model.graph_check import MAX_BYTES, GraphError, check_graph
from serving.model.signature import PublicKeys
from serving.model.tensors import CLASSES, SIDE

_logger = logging.getLogger("distillery")

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "MODEL_CARD.md"
LOCK_FILE = ".lock"
"""Of `export`, in the repository's folder."""
RELEASE_FILE = "release.json"
"""The aliases and what a candidate is given: `serving.model.release`."""
OWN_FILES = (LOCK_FILE, RELEASE_FILE)
STABLE, CANDIDATE = ALIASES = ("stable", "candidate")
"""Names that stand for a model, or for a version of one."""
LARGEST_CARD = 1024 * 1024
"""Bytes; every API process holds every model card in memory."""
NAME = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")
"""Model names appear in URLs, metric labels and folder names, so their characters are restricted."""

PREFERRED = ("fast-int8", "student-int8", "student")
"""The models of which the first one in a repository is its default."""

_NAMES = 8


class RepositoryError(DistilleryError):
    """An invalid model repository. The message names the file, the error and the fix."""


class TensorSpec(BaseModel):
    """One input or output of the graph; -1 in `shape` is the batch dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    datatype: Literal["UINT8", "FP32", "BOOL"] = Field(description="Open Inference Protocol datatype")
    shape: tuple[int, ...]


INPUTS = (TensorSpec(name="image", datatype="UINT8", shape=(-1, SIDE, SIDE)),)
OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, CLASSES)),
    TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES)),
)
ACCEPTANCE_OUTPUTS = (
    TensorSpec(name="confidence", datatype="FP32", shape=(-1, 1)),
    TensorSpec(name="accepted", datatype="BOOL", shape=(-1, 1)),
)
"""Outputs of the service that it computes by the acceptance rule; a model exported by version 0.1.0 has none."""
ESCALATED = TensorSpec(name="escalated", datatype="BOOL", shape=(-1, 1))
"""Further output of a cascade: whether the teacher predicted."""
OUTLIER = TensorSpec(name="outlier", datatype="FP32", shape=(-1, 1))
"""Further output of a file with an acceptance rule: the logit of "no digit"."""
POWER, THRESHOLD = "acceptance_power", "acceptance_threshold"
"""Names of the rule's parameters in the metadata of the ONNX file."""


class Parity(BaseModel):
    """Difference between the outputs of the file and of its network, over `images` test digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: int
    disagreements: int = Field(description="digits whose most probable class differs")
    largest_difference: float = Field(
        description="largest difference of a logit, relative to the image's largest logit if that is above 1"
    )


class Acceptance(BaseModel):
    """The rule by which predictions are accepted, and its results on validation digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    power: Annotated[float, Field(gt=0, description="of the share of a digit, for a calibrated confidence")]
    threshold: Annotated[float, Field(ge=0, le=1, description="lowest confidence that is accepted")]
    risk: Annotated[
        float, Field(gt=0, lt=1, description="largest share of errors among accepted digits, as stated")
    ]
    digits: Annotated[int, Field(gt=0, description="validation digits that chose the threshold")]
    accepted: Annotated[int, Field(ge=0, description="of these digits")]
    errors: Annotated[int, Field(ge=0, description="among the accepted ones")]
    bound: Annotated[
        float,
        Field(
            ge=0, le=1, description="95 % upper bound on the probability of an error among accepted digits"
        ),
    ]
    test_accepted: Annotated[int, Field(ge=0, description="of the test digits, which chose nothing")]
    test_errors: Annotated[int, Field(ge=0, description="among the accepted test digits")]
    outliers_accepted: dict[str, float] = Field(
        description="accepted share of images without a digit, by kind; drawn for validation"
    )


class Sample(BaseModel):
    """A few digits and the file's logits for them: `serving.model.sample`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: Annotated[str, Field(max_length=65536, description="uint8 pixels, zlib, base64")]
    logits: Annotated[list[list[float]], Field(min_length=1, max_length=64, description="of each image")]


class Manifest(BaseModel):
    """The manifest of one model file, or of a cascade. Unknown fields, as a newer version may write, are rejected.

    A cascade has sums of its models' sizes, its student's origin (checkpoint, recipe), and its parity with its teacher.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=64)]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    sha256: Annotated[
        str, Field(pattern=r"^[0-9a-f]{64}$", description="of model.onnx; of a cascade: of its rule")
    ]
    size_bytes: Annotated[int, Field(gt=0, description="of model.onnx; of a cascade: of both models")]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    precision: Literal["fp32", "int8", "mixed"] = Field(
        description="mixed: a cascade of a student and a teacher of different precisions"
    )
    quantisation: dict[str, float] | None = Field(
        default=None, description="parameters and results of the quantisation of an int8 file"
    )
    architecture: Annotated[str, Field(description="layer widths, such as 784-800-800-10")]
    parameters: Annotated[int, Field(gt=0, description="of the network, before BatchNorm is folded")]
    test_errors: Annotated[
        int, Field(ge=0, description="misclassified of the 10,000 test digits, by this file")
    ]
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    parity: Parity
    sample: Sample | None = Field(
        default=None,
        description="digits that a service runs before it loads this version; null: an older file",
    )
    headline: dict[str, float] | None = Field(
        default=None, description="main figures of the model card, of the network before export"
    )
    calibration_temperature: float | None = Field(
        default=None, description="divisor of the logits for calibrated probabilities"
    )
    acceptance: Acceptance | None = Field(
        default=None,
        description="rule of the outputs confidence and accepted; null: an older file without them, or a cascade, "
        "whose models have a rule each",
    )
    cascade: Cascade | None = Field(default=None, description="rule of a cascade; null: a model with a graph")
    checkpoint_sha256: str
    recipe: dict[str, Any] = Field(description="the resolved training configuration")
    dataset: dict[str, str] = Field(description="SHA-256 of each dataset file")
    tools: dict[str, str] = Field(description="versions of the software that made the file")

    @property
    def served_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the Open Inference Protocol."""
        if self.cascade:
            return (*OUTPUTS, *ACCEPTANCE_OUTPUTS, ESCALATED)
        return OUTPUTS + ACCEPTANCE_OUTPUTS if self.acceptance else OUTPUTS


class ModelEntry(BaseModel):
    """One version of a model: its manifest, and its verified graph with the path it was read from.

    The graph is kept in memory: a process that replaces another one, long after the start, runs the same as the
    others, whatever has happened to the file since. A cascade has no graph, but the path of its manifest.
    """

    model_config = ConfigDict(frozen=True)
    manifest: Manifest
    path: Path
    content: bytes = Field(default=b"", repr=False)
    card: str | None = Field(default=None, repr=False)
    """The model card (Markdown), if the model has one."""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version_key(self) -> tuple[str, str]:
        """Name and version."""
        return self.manifest.name, self.manifest.version


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_repository(root: Path, keys: PublicKeys | None = None) -> dict[str, ModelEntry]:
    """Read and verify the highest version of every model below `root`; `serving.model.versions` reads several.

    With `keys`, one of them must have signed each manifest. Raises `SignatureError` otherwise.

    Raises `RepositoryError` when the folder is missing, unreadable or empty, a manifest is missing or has unknown or
    invalid fields, a graph differs from its manifest's checksum or contains what `export` does not write, or names
    disagree.
    """
    entries = {folder.name: load_model(version_folders(folder)[-1], keys) for folder in model_folders(root)}
    for entry in entries.values():
        check_cascade(entry, {each.version_key: each.manifest for each in entries.values()})
    return entries


def model_folders(root: Path) -> list[Path]:
    """Return the folders of all models below `root`, sorted by name. Raises `RepositoryError`.

    What is not a model, such as `lost+found`, is skipped, and named in a warning.
    """
    with _readable(root):
        if not root.is_dir():
            raise RepositoryError(f"there is no model repository at {root}; `make export` writes one")
        if any((folder / MANIFEST_FILE).is_file() for folder in (root, *_versions(root))):
            raise RepositoryError(
                f"{root} is a model or a version of one: name the folder with models, NAME/VERSION/{MODEL_FILE}"
            )
        paths = sorted(path for path in root.iterdir() if path.name not in OWN_FILES)
        folders = [path for path in paths if _is_model(path)]
    skipped = _listed([path.name for path in paths if path not in folders])
    if not folders:
        raise RepositoryError(
            f"the model repository {root} {f'contains no model, only {skipped}' if skipped else 'is empty'}; "
            "`make export` writes models into it"
        )
    if skipped:
        _logger.warning(
            "%s: skipped %s: not a model, whose path is NAME/VERSION/%s", root, skipped, MODEL_FILE
        )
    if reserved := [folder.name for folder in folders if folder.name in ALIASES]:
        raise RepositoryError(
            f"{root / reserved[0]}: {reserved[0]} is an alias of the service; export the model under another name"
        )
    return folders


def _is_model(path: Path) -> bool:
    """Return whether `path` is a model, valid or not, rather than a file system's or a tool's own folder or file."""
    if path.name.startswith("."):  # .git, .publish-… of an unfinished export, ..data of a Kubernetes volume
        return False
    if NAME.fullmatch(path.name):
        return path.is_dir() or not path.exists()  # a link to nowhere is a broken model
    try:
        return path.is_dir() and bool(_versions(path))
    except PermissionError:  # lost+found
        return False


def _listed(names: Sequence[str]) -> str:
    """Return the first of many names, and the number of the others."""
    more = [f"{len(names) - _NAMES} more"] if len(names) > _NAMES else []
    return ", ".join([*names[:_NAMES], *more])


def _versions(folder: Path) -> list[Path]:
    """Return the version folders of a model, the oldest first."""
    versions = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(versions, key=lambda path: int(path.name))


def version_folders(folder: Path) -> list[Path]:
    """Return the version folders of a model, the lowest first. Raises `RepositoryError` if there is none."""
    with _readable(folder):
        if not folder.is_dir():
            raise RepositoryError(
                f"{folder} is a link to {folder.readlink()}, which does not exist; mount that as well"
            )
        versions = _versions(folder)
    if not versions:
        raise RepositoryError(
            f"{folder} has no version folder such as {folder / '1'}; export the model again, "
            "or move the folder away if it is no model"
        )
    return versions


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn errors of the file system below `root` into a `RepositoryError` with the fix."""
    try:
        yield
    except PermissionError as error:
        raise RepositoryError(
            f"{error.filename} is not readable for user {os.geteuid()}: chmod -R a+rX {root}, "
            "and a+x on the folders above it"
        ) from None
    except OSError as error:
        raise RepositoryError(f"cannot read {error.filename or root}: {error.strerror}") from None


def load_model(folder: Path, keys: PublicKeys | None = None) -> ModelEntry:
    """Read and verify `<name>/<version>/`, and its signature if there are `keys`.

    Raises `RepositoryError`, `SignatureError`.
    """
    with _readable(folder):
        return _load_model(folder, keys)


def _load_model(folder: Path, keys: PublicKeys | None) -> ModelEntry:
    manifest_path, model_path = folder / MANIFEST_FILE, folder / MODEL_FILE
    if not manifest_path.is_file():
        raise RepositoryError(f"{manifest_path} is missing; export the model again")
    document = manifest_path.read_bytes()
    if keys:
        keys.verify(manifest_path, document)
    try:
        manifest = Manifest.model_validate_json(document)
    except ValidationError as error:
        errors = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']} (found {e['input']!r:.80})"
            for e in error.errors()
        )
        raise RepositoryError(f"{manifest_path} is invalid: {errors}; export the model again") from None
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise RepositoryError(
            f"{manifest_path} describes {manifest.name}/{manifest.version}, "
            f"but is in {folder.parent.name}/{folder.name}; export a copied model under its new name"
        )
    outputs = (*OUTPUTS, OUTLIER) if manifest.acceptance else OUTPUTS
    if (manifest.inputs, manifest.outputs) != (INPUTS, outputs):
        raise RepositoryError(
            f"{manifest_path}: inputs and outputs differ from those this service supports: {INPUTS}, {outputs}"
        )
    if manifest.cascade:
        return ModelEntry(manifest=manifest, path=manifest_path, card=_read_card(manifest_path))
    if not model_path.is_file():
        raise RepositoryError(f"{model_path} is missing; export the model again")
    content = _read_graph(model_path, manifest.sha256)
    try:
        check_graph(content, manifest.inputs, manifest.outputs)
    except GraphError as error:
        raise RepositoryError(
            f"{model_path} is not a graph that this service loads: {error}; export the model again"
        ) from None
    return ModelEntry(manifest=manifest, path=model_path, content=content, card=_read_card(model_path))


def _read_graph(path: Path, sha256: str) -> bytes:
    """Return the content of a graph's file. Raises `RepositoryError` if it has another hash."""
    with path.open("rb") as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise RepositoryError(
                f"{path} has {size:,} bytes, more than the {MAX_BYTES:,} of the largest graph; "
                "export the model again"
            )
        content = file.read(MAX_BYTES + 1)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise RepositoryError(
            f"{path} has SHA-256 {found}, its manifest says {sha256}: "
            "the file was changed or is incomplete; export the model again"
        )
    return content


def check_cascade(entry: ModelEntry, models: Mapping[tuple[str, str], Manifest]) -> None:
    """Check the two models of a cascade, among those served, by name and version; no effect on another entry.

    Raises `RepositoryError` for one that is missing, another file, a cascade itself, or has other inputs or no
    confidence.
    """
    if (rule := entry.manifest.cascade) is None:
        return
    again = f"run distillery-export cascade --name {entry.name} again"
    for role, member in (("student", rule.student), ("teacher", rule.teacher)):
        is_what = f"{entry.path}: the {role} of the cascade, {member},"
        found = models.get((member.name, member.version))
        if found is None:
            served = sorted(f"{name}/{version}" for name, version in models if name != entry.name)
            raise RepositoryError(
                f"{is_what} is not served, only {_listed(served) or 'the cascade'}; "
                f"export {member.name} as version {member.version}, or {again}"
            )
        if found.cascade:
            raise RepositoryError(
                f"{is_what} is {'this cascade' if found is entry.manifest else 'a cascade'}: cascades are not "
                f"nested; {again} with a model that has a graph"
            )
        if found.sha256 != member.sha256:
            raise RepositoryError(
                f"{is_what} has SHA-256 {found.sha256}, the threshold was chosen for {member.sha256} and holds "
                f"for no other file; {again}"
            )
        if found.inputs != entry.manifest.inputs:
            raise RepositoryError(
                f"{is_what} has the inputs {found.inputs}, the cascade {entry.manifest.inputs}; {again}"
            )
        if found.acceptance is None:
            raise RepositoryError(
                f"{is_what} was exported without confidence; export {member.name} again, then {again}"
            )


def default_model(names: Iterable[str]) -> str:
    """Return the model to use where none is named: the first of `PREFERRED`, else the first of all."""
    known = list(names)
    return next((name for name in PREFERRED if name in known), known[0])


def _read_card(model_path: Path) -> str | None:
    """Return the model card next to a graph. Raises `RepositoryError` if it exceeds 1 MiB or is not UTF-8."""
    path = model_path.with_name(CARD_FILE)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        content = file.read(LARGEST_CARD + 1)
    if len(content) > LARGEST_CARD:
        raise RepositoryError(
            f"{path} has more than {LARGEST_CARD:,} bytes; report and export the model again"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RepositoryError(f"{path} is not UTF-8: {error}; report and export the model again") from None
