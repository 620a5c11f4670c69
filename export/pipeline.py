"""From checkpoints to a verified model repository, one model at a time."""

from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from distillery.files import sha256
from export import ExportError
from export.acceptance import RISK, OutlierUnit, add_rule, fit_outlier_unit
from export.calibrate import choose_quantisation
from export.fold import fold
from export.graph import Graph, to_onnx
from export.parity import measure_parity, network_logits, require_parity, require_parity_on_extremes
from export.publish import documents_match, headline, publish
from export.signing import SigningKey
from export.splits import Splits
from serving.model.graph_check import OPSET
from serving.model.repository import (
    INPUTS,
    NAME,
    OUTLIER,
    OUTPUTS,
    POWER,
    THRESHOLD,
    Manifest,
    ModelEntry,
    RepositoryError,
    Sample,
    file_sha256,
    load_model,
)
from serving.model.sample import make_sample
from serving.model.versions import VersionPolicy
from training.data.mnist import Digits
from training.evaluation.calibration import fit_temperature
from training.model.checkpoint import load_checkpoint
from training.recipe.schema import Architecture
from training.runs.folder import current_folder, current_models


@dataclass(frozen=True)
class Source:
    """A checkpoint and the name of its model in the repository."""

    name: str
    path: Path

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ExportError(
                f"model name {self.name!r}: use lower-case letters and digits, such as 'student-2'"
            )

    @classmethod
    def of_run(cls, run_dir: Path) -> list[Self]:
        """Return the current networks of a training run. Raises `ExportError` if there are none."""
        # Each link is read once: a training with other settings may move it meanwhile.
        paths = {
            name: current_folder(run_dir, name) / "model.safetensors" for name in current_models(run_dir)
        }
        sources = [cls(name, path.resolve()) for name, path in paths.items() if path.is_file()]
        if not sources:
            raise ExportError(f"there is no trained network in {run_dir}; `make train` trains one")
        return sources

    def published_names(self, int8: Collection[str]) -> list[str]:
        """Return the names of its models in the repository; `int8` names the sources that are quantised, too."""
        return [self.name, f"{self.name}-int8"] if self.name in int8 else [self.name]


def find_current(
    models_dir: Path, name: str, version: int, checkpoint: Path, *, risk: float = RISK
) -> ModelEntry | None:
    """Return the published model if it was made from this checkpoint and report, with these versions and this risk."""
    folder = models_dir / name / str(version)
    try:
        entry = load_model(folder)
    except RepositoryError:
        return None
    found = entry.manifest
    same = (found.checkpoint_sha256, found.tools) == (file_sha256(checkpoint), _versions())
    current = (
        same and found.acceptance is not None and found.acceptance.risk == risk and found.sample is not None
    )
    return entry if current and documents_match(checkpoint, entry) else None


def export_checkpoint(
    source: Source,
    splits: Splits,
    *,
    models_dir: Path,
    version: int = 1,
    int8: bool = False,
    risk: float = RISK,
    key: SigningKey | None = None,
    policy: VersionPolicy | None = None,
) -> list[ModelEntry]:
    """Export one checkpoint in fp32, and in int8 if requested; publish each file once it is verified.

    `key` signs the manifests, `policy` says which versions are served; by default as before.

    Raises `ExportError`, and publishes nothing, if the fp32 graph does not compute what the network computes, or if
    int8 is requested of an ensemble.
    """
    checkpoint = load_checkpoint(source.path)
    network, card = checkpoint.network, checkpoint.metadata
    architecture = Architecture(**card["architecture"])
    if int8 and architecture.members > 1:
        raise ExportError(
            f"{source.name} is an ensemble, {architecture}, and only single networks are quantised: "
            "name one of those with --int8"
        )
    exact = network_logits(network, splits.test.images.numpy())
    members = fold(network)
    plain = to_onnx(members)
    require_parity_on_extremes(plain, network)
    unit = fit_outlier_unit(plain, splits.samples)
    fp32, facts = _finish(plain, unit, splits, exact, risk)
    require_parity(facts["parity"])
    manifest = Manifest(
        name=source.name,
        version=str(version),
        inputs=INPUTS,
        outputs=(*OUTPUTS, OUTLIER),
        opset=OPSET,
        precision="fp32",
        architecture=str(architecture),
        parameters=sum(weights.numel() for weights in network.parameters()),
        headline=headline(source.path),
        checkpoint_sha256=file_sha256(source.path),
        recipe=card["recipe"],
        dataset=card["dataset"],
        tools=_versions(),
        **facts,
    )
    entries = [publish(models_dir, manifest, fp32.content, source.path, key, policy)]
    if int8:
        chosen = choose_quantisation(members[0], plain, splits)
        quantised, facts = _finish(chosen.graph, unit, splits, exact, risk)
        manifest = manifest.model_copy(
            update=facts
            | {"name": f"{source.name}-int8", "precision": "int8", "quantisation": chosen.describe()}
        )
        entries.append(publish(models_dir, manifest, quantised.content, source.path, key, policy))
    return entries


def _finish(
    graph: Graph, unit: OutlierUnit, splits: Splits, exact: npt.NDArray[np.float64], risk: float
) -> tuple[Graph, dict[str, Any]]:
    """Add calibration temperature and acceptance rule; return the graph and the manifest's entries on that file.

    `exact` holds the network's logits for the test digits.
    """
    validation = torch.from_numpy(graph.logits(splits.validation.images.numpy()))
    temperature = round(fit_temperature(validation, splits.validation.labels), 6)
    graph, acceptance = add_rule(graph, unit, splits, risk)
    graph = graph.with_metadata(
        {
            "calibration_temperature": str(temperature),
            POWER: str(acceptance.power),
            THRESHOLD: str(acceptance.threshold),
        }
    )
    found = graph.logits(splits.test.images.numpy())
    errors = int((found.argmax(1) != splits.test.labels.numpy()).sum())
    return graph, {
        "sha256": sha256(graph.content),
        "size_bytes": len(graph.content),
        "test_errors": errors,
        "test_accuracy": round(1 - errors / len(splits.test), 6),
        "calibration_temperature": temperature,
        "acceptance": acceptance,
        "parity": measure_parity(found, exact),
        "sample": _sample(graph, splits.validation),
    }


def _sample(graph: Graph, validation: Digits) -> Sample:
    """Return the first validation digit of each class, with the file's logits."""
    _, first = np.unique(validation.labels.numpy(), return_index=True)
    images = validation.images.numpy()[first]
    return make_sample(images, graph.logits(images))


def _versions() -> dict[str, str]:
    return {tool: version_of(tool) for tool in ("distillery", "onnx", "onnxruntime", "torch")}
