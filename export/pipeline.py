"""From checkpoints to a verified model repository, one model at a time."""

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import onnx

from export.calibrate import choose_quantisation
from export.errors import ExportError
from export.fold import fold
from export.graph import OPSET, to_onnx
from export.parity import answer, measure_parity, open_session, require_parity
from export.publish import publish
from serving.repository import (
    INPUTS,
    NAME,
    OUTPUTS,
    Manifest,
    ModelEntry,
    RepositoryError,
    file_sha256,
    load_model,
)
from training.checkpoint import Checkpoint, load_checkpoint
from training.data import find_mnist, load_test, load_training
from training.recipe import Architecture


@dataclass(frozen=True)
class Source:
    """A checkpoint and the name its model gets in the repository."""

    name: str
    path: Path

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ExportError(
                f"model name {self.name!r}: use lower-case letters and digits, such as 'student-2'"
            )

    @classmethod
    def of_run(cls, run_dir: Path) -> list[Self]:
        """The current networks of a training run. Raises `ExportError` where there is none."""
        # The current ones are symbolic links; the folders they lead to carry fingerprints.
        found = sorted(path for path in run_dir.glob("*/model.safetensors") if path.parent.is_symlink())
        if not found:
            raise ExportError(f"there is no trained network in {run_dir}; `make train` trains one")
        # Followed once: whoever trains other settings meanwhile moves the links.
        return [cls(path.parent.name, path.resolve()) for path in found]


@dataclass(frozen=True)
class Digits:
    """What an export looks at: images `uint8 [N, 28, 28]`, labels `int64 [N]`."""

    calibration: npt.NDArray[np.uint8]
    validation: npt.NDArray[np.uint8]
    validation_labels: npt.NDArray[np.int64]
    test: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]

    @classmethod
    def read(cls, data_dir: Path | None) -> Self:
        """Find, verify and read MNIST. Raises `training.data.DatasetError`."""
        folder = find_mnist(data_dir)
        training, validation = load_training(folder)
        test = load_test(folder)
        return cls(
            calibration=training.images.numpy(),
            validation=validation.images.numpy(),
            validation_labels=validation.labels.numpy(),
            test=test.images.numpy(),
            test_labels=test.labels.numpy(),
        )


def published_names(source: Source, int8: Collection[str]) -> list[str]:
    """The names in the repository that come from `source`."""
    return [source.name, f"{source.name}-int8"] if source.name in int8 else [source.name]


def current(models_dir: Path, name: str, version: int, checkpoint: Path) -> ModelEntry | None:
    """The published model, if it comes from this very checkpoint and was made by these very tools."""
    try:
        entry = load_model(models_dir / name / str(version))
    except RepositoryError:
        return None
    found = (entry.manifest.checkpoint_sha256, entry.manifest.tools)
    return entry if found == (file_sha256(checkpoint), _tools()) else None


def export_checkpoint(
    source: Source, digits: Digits, *, models_dir: Path, version: int = 1, int8: bool = False
) -> list[ModelEntry]:
    """Export one checkpoint in fp32, and in int8 if asked; publish each once it is verified.

    Raises `ExportError` when the fp32 graph does not answer as the network, or an ensemble is asked for in int8,
    and then publishes nothing.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = load_checkpoint(source.path)
    architecture = Architecture(**checkpoint.card["architecture"])
    if int8 and architecture.members > 1:
        raise ExportError(
            f"{source.name} is an ensemble, {architecture}, and only single networks are quantised: "
            "name one of those with --int8"
        )
    fp32 = to_onnx(fold(checkpoint.network), architecture)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=models_dir) as folder:
        graph = Path(folder) / "model.onnx"
        graph.write_bytes(fp32.SerializeToString())
        require_parity(checkpoint.network, graph, digits.test)
        manifest = _manifest(source.name, version, source.path, checkpoint, graph, digits)
        entries = [load_model(publish(models_dir, manifest, graph))]
        if int8:
            chosen = choose_quantisation(
                fp32, digits.calibration, digits.validation, digits.validation_labels
            )
            onnx.checker.check_model(chosen.model, full_check=True)
            graph.write_bytes(chosen.model.SerializeToString())
            manifest = _manifest(f"{source.name}-int8", version, source.path, checkpoint, graph, digits)
            manifest = manifest.model_copy(update={"precision": "int8", "quantisation": chosen.describe()})
            entries.append(load_model(publish(models_dir, manifest, graph)))
    return entries


def _manifest(
    name: str, version: int, source: Path, checkpoint: Checkpoint, graph: Path, digits: Digits
) -> Manifest:
    errors = int((answer(open_session(graph), digits.test).argmax(1) != digits.test_labels).sum())
    return Manifest(
        name=name,
        version=str(version),
        sha256=file_sha256(graph),
        size_bytes=graph.stat().st_size,
        inputs=INPUTS,
        outputs=OUTPUTS,
        opset=OPSET,
        precision="fp32",
        architecture=str(Architecture(**checkpoint.card["architecture"])),
        parameters=sum(weights.numel() for weights in checkpoint.network.parameters()),
        test_errors=errors,
        test_accuracy=round(1 - errors / len(digits.test), 6),
        parity=measure_parity(checkpoint.network, graph, digits.test),
        checkpoint_sha256=file_sha256(source),
        recipe=checkpoint.card["recipe"],
        dataset=checkpoint.card["dataset"],
        tools=_tools(),
    )


def _tools() -> dict[str, str]:
    return {tool: version_of(tool) for tool in ("distillery", "onnx", "onnxruntime", "onnxscript", "torch")}
