"""The model repository: the contract between `export`, which writes it, and `serving`, which reads it.

    models/<name>/<version>/model.onnx       the graph: image uint8 [N,28,28] to logits and probabilities
    models/<name>/<version>/manifest.json    what the graph is, what it scores, what it came from
    models/<name>/<version>/MODEL_CARD.md    the same for people and much more, if its training was reported
    models/<name>/config.pbtxt               the same for NVIDIA Triton, which reads this layout as it is

`load_repository` refuses the whole repository when anything in it cannot be trusted: a service that starts
without one of its models is a surprise to somebody.
"""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillery import DistilleryError

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
CARD_FILE = "MODEL_CARD.md"
LARGEST_CARD = 1024 * 1024
"""Bytes; every API process keeps every card in memory."""
NAME = re.compile(r"[a-z0-9]+(?:[-_.][a-z0-9]+)*")
"""Model names travel in URLs, metric labels and folder names, so they are kept plain."""


class RepositoryError(DistilleryError):
    """A model repository that cannot be served: the message says which file, what is wrong and the cure."""


class TensorSpec(BaseModel):
    """One input or output of the graph; -1 in `shape` is the batch dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    datatype: Literal["UINT8", "FP32"] = Field(description="Open Inference Protocol datatype")
    shape: tuple[int, ...]


INPUTS = (TensorSpec(name="image", datatype="UINT8", shape=(-1, 28, 28)),)
OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),
    TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10)),
)


class Parity(BaseModel):
    """How far the file's answers are from those of the network it was made from, over `images` test digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: int
    disagreements: int = Field(description="digits for which the most probable class differs")
    largest_difference: float = Field(description="of two logits, relative to the image's largest above 1")


class Manifest(BaseModel):
    """What is known of one model file. Unknown fields are refused: a newer writer is not guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=64)]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of model.onnx")]
    size_bytes: Annotated[int, Field(gt=0)]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    precision: Literal["fp32", "int8"]
    quantisation: dict[str, float] | None = Field(default=None, description="how an int8 file was made")
    architecture: Annotated[str, Field(description="layer widths, such as 784-800-800-10")]
    parameters: Annotated[int, Field(gt=0, description="of the network before BatchNorm is folded away")]
    test_errors: Annotated[int, Field(ge=0, description="of this file, on the 10,000 test digits")]
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    parity: Parity
    headline: dict[str, float] | None = Field(
        default=None, description="of the network it was made from: the chief figures of its model card"
    )
    calibration_temperature: float | None = Field(
        default=None, description="what to divide the logits by for probabilities that can be believed"
    )
    checkpoint_sha256: str
    recipe: dict[str, Any] = Field(description="the resolved training configuration")
    dataset: dict[str, str] = Field(description="SHA-256 of each dataset file")
    tools: dict[str, str] = Field(description="versions of what made the file")


class ModelEntry(BaseModel):
    """One servable model: its manifest and where its graph lies."""

    model_config = ConfigDict(frozen=True)
    manifest: Manifest
    path: Path

    @property
    def name(self) -> str:
        return self.manifest.name


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_repository(root: Path) -> dict[str, ModelEntry]:
    """Read and verify every model below `root`; of several versions the highest is served.

    Raises `RepositoryError` naming the file and the cure when the folder is missing or empty, a manifest is
    missing or has unknown or wrong fields, a graph's bytes are not those of its manifest, or names disagree.
    """
    if not root.is_dir():
        raise RepositoryError(f"there is no model repository at {root}; `make export` writes one")
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    entries = {folder.name: _load_latest(folder) for folder in folders}
    if not entries:
        raise RepositoryError(f"the model repository {root} is empty; `make export` writes models into it")
    return entries


def _load_latest(folder: Path) -> ModelEntry:
    versions = sorted(
        (v for v in folder.iterdir() if v.is_dir() and v.name.isdecimal()), key=lambda v: int(v.name)
    )
    if not versions:
        raise RepositoryError(
            f"{folder} has no version folder such as {folder / '1'}; export the model again"
        )
    return load_model(versions[-1])


def load_model(folder: Path) -> ModelEntry:
    """Read and verify `<name>/<version>/`. Raises `RepositoryError`."""
    manifest_path, model_path = folder / MANIFEST_FILE, folder / MODEL_FILE
    for path in (manifest_path, model_path):
        if not path.is_file():
            raise RepositoryError(f"{path} is missing; export the model again")
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']} (found {e['input']!r:.80})"
            for e in error.errors()
        )
        raise RepositoryError(f"{manifest_path} does not fit: {mistakes}; export the model again") from None
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise RepositoryError(
            f"{manifest_path} describes {manifest.name}/{manifest.version}, "
            f"but lies in {folder.parent.name}/{folder.name}; export a copied model under its new name"
        )
    if (manifest.inputs, manifest.outputs) != (INPUTS, OUTPUTS):
        raise RepositoryError(
            f"{manifest_path}: inputs and outputs are not those this service speaks: {INPUTS}, {OUTPUTS}"
        )
    found = file_sha256(model_path)
    if found != manifest.sha256:
        raise RepositoryError(
            f"{model_path} has SHA-256 {found}, its manifest says {manifest.sha256}: "
            "the file was changed or cut off; export the model again"
        )
    return ModelEntry(manifest=manifest, path=model_path)


def read_card(entry: ModelEntry) -> str | None:
    """Return the model's card, Markdown, None where it has none.

    Raises `RepositoryError` for one of more than 1 MiB or that is not UTF-8.
    """
    path = entry.path.with_name(CARD_FILE)
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
