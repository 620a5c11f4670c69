"""From checkpoints to a verified model repository, one model at a time."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
import torch

from export.calibrate import choose_quantisation
from export.documents import documents, headline, is_published
from export.errors import ExportError
from export.fold import fold
from export.graph import OPSET, to_onnx
from export.parity import answer, measure_parity, open_session, require_parity
from export.publish import publish
from serving.model.repository import (
    INPUTS,
    NAME,
    OUTPUTS,
    Manifest,
    ModelEntry,
    RepositoryError,
    file_sha256,
    load_model,
)
from training.data.mnist import find_mnist, load_test, load_training
from training.evaluation.calibration import fit_temperature
from training.model.checkpoint import Checkpoint, load_checkpoint
from training.recipe.schema import Architecture


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
        """Find, verify and read MNIST. Raises `training.data.mnist.DatasetError`."""
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
    """The published model, if it comes from this very checkpoint and report and was made by these very tools."""
    folder = models_dir / name / str(version)
    try:
        entry = load_model(folder)
    except RepositoryError:
        return None
    same = (entry.manifest.checkpoint_sha256, entry.manifest.tools) == (file_sha256(checkpoint), _tools())
    return entry if same and is_published(checkpoint, folder) else None


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
    reports = documents(source.path)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=models_dir) as folder:
        graph = Path(folder) / "model.onnx"
        fp32 = to_onnx(fold(checkpoint.network), architecture)
        facts = _write(fp32, graph, digits)
        parity = require_parity(checkpoint.network, graph, digits.test)
        manifest = _manifest(source, version, checkpoint, facts | {"parity": parity})
        entries = [load_model(publish(models_dir, manifest, graph, reports))]
        if int8:
            chosen = choose_quantisation(
                fp32,
                digits.calibration,
                digits.validation,
                digits.validation_labels,
                trained=checkpoint.card.get("quantisation"),
            )
            onnx.checker.check_model(chosen.model, full_check=True)
            facts = _write(chosen.model, graph, digits) | {
                "name": f"{source.name}-int8",
                "precision": "int8",
                "quantisation": chosen.describe(),
                "parity": measure_parity(checkpoint.network, graph, digits.test),
            }
            manifest = manifest.model_copy(update=facts)
            entries.append(load_model(publish(models_dir, manifest, graph, reports)))
    return entries


def _write(model: onnx.ModelProto, graph: Path, digits: Digits) -> dict[str, Any]:
    """Write `model` to `graph`, its calibration temperature with it; return what a manifest says of the file."""
    logits = torch.from_numpy(answer(open_session(model.SerializeToString()), digits.validation))
    temperature = round(fit_temperature(logits, torch.from_numpy(digits.validation_labels)), 6)
    onnx.helper.set_model_props(model, {"calibration_temperature": str(temperature)})
    graph.write_bytes(model.SerializeToString())
    errors = int((answer(open_session(graph), digits.test).argmax(1) != digits.test_labels).sum())
    return {
        "sha256": file_sha256(graph),
        "size_bytes": graph.stat().st_size,
        "test_errors": errors,
        "test_accuracy": round(1 - errors / len(digits.test), 6),
        "calibration_temperature": temperature,
    }


def _manifest(source: Source, version: int, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Manifest:
    card = checkpoint.card
    return Manifest(
        name=source.name,
        version=str(version),
        inputs=INPUTS,
        outputs=OUTPUTS,
        opset=OPSET,
        precision="fp32",
        architecture=str(Architecture(**card["architecture"])),
        parameters=sum(weights.numel() for weights in checkpoint.network.parameters()),
        headline=headline(source.path),
        checkpoint_sha256=file_sha256(source.path),
        recipe=card["recipe"],
        dataset=card["dataset"],
        tools=_tools(),
        **facts,
    )


def _tools() -> dict[str, str]:
    return {tool: version_of(tool) for tool in ("distillery", "onnx", "onnxruntime", "onnxscript", "torch")}
