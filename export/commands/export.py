"""`distillery-export`: export trained checkpoints to the ONNX model repository."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distillery import Metavar, unknown
from distillery.files import require_writable
from distillery.machine import usable_cores
from export import ExportError
from export.acceptance import RISK
from export.commands.settings import RepositorySettings
from export.pipeline import Source, export_checkpoint, find_current
from export.publish import set_policy
from export.signing import SigningKey, sign_model
from export.splits import Splits
from serving.model.repository import ModelEntry
from serving.model.versions import VersionPolicy
from training.commands.settings import DataSettings

MAX_EXTRA_ERRORS = 2
"""Test errors of int8 above those of fp32 that need no warning."""


def _valid_policy(text: str | None) -> str | None:
    if text is not None:
        VersionPolicy.parse(text)
    return text


class Export(DataSettings, RepositorySettings):
    """Export trained networks to ONNX, verify parity, and publish them for serving.

    Every network of a run is exported in fp32, and those named by --int8 also in int8. A model that was published
    from the same checkpoint and report, with the same versions, is left as it is. The report that
    `distillery-train report` wrote next to a checkpoint is published with it.
    """

    examples = (
        "distillery-export",
        "distillery-export --run-dir runs/notebook --models-dir models-notebook",
        "distillery-export --run-dir runs/best --int8 student,fast,tiny",
        "distillery-export --signing-key signing.pem",
        "distillery-export --checkpoint my.safetensors --name mine --int8 mine",
        "distillery-export --model-version 2 --version-policy latest:2",
    )

    run_dir: Path = Field(Path("runs/quick"), description="training run to export")
    checkpoint: Annotated[Path | None, Metavar("FILE")] = Field(
        None, description="export this checkpoint instead of a run"
    )
    name: str = Field("model", description="with --checkpoint: name of the model")
    int8: Annotated[list[str], Metavar("MODEL,...")] = Field(
        ["student", "fast"], description="models that are also published as NAME-int8"
    )
    risk: float = Field(
        RISK, gt=0, lt=0.5, description="largest share of errors among accepted validation digits"
    )
    model_version: int = Field(1, ge=1, description="version folder to write")
    version_policy: Annotated[str | None, AfterValidator(_valid_policy), Metavar("POLICY")] = Field(
        None,
        description="versions that a service serves: latest:N, all, or numbers such as 1,3; default: as before, at "
        "first the latest",
    )
    force: bool = Field(False, description="export unchanged models again")

    def run(self) -> None:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # a CPU quota hides no cores
        sources = [Source(self.name, self.checkpoint)] if self.checkpoint else Source.of_run(self.run_dir)
        self._require_known(sources)
        key = SigningKey.read(self.signing_key) if self.signing_key else None
        policy = VersionPolicy.parse(self.version_policy) if self.version_policy else None
        console = Console()
        splits: Splits | None = None  # read when the first model needs them
        entries: list[ModelEntry] = []
        for source in sources:
            names = source.published_names(self.int8)
            found = [
                find_current(self.models_dir, name, self.model_version, source.path, risk=self.risk)
                for name in names
            ]
            current = [entry for entry in found if entry]
            if len(current) == len(names) and not self.force:
                signed = [entry.name for entry in current if key and sign_model(entry, key)]
                console.print(f"{'signed' if signed else 'unchanged':<11}{', '.join(signed or names)}")
                if policy and (other := [entry.name for entry in current if set_policy(entry, policy)]):
                    console.print(f"{'policy':<11}{', '.join(other)}")
                entries += current
                continue
            require_writable(self.models_dir)
            with console.status(f"exporting {', '.join(names)}"):
                splits = splits or Splits.read(self.data_dir)
                entries += export_checkpoint(
                    source,
                    splits,
                    models_dir=self.models_dir,
                    version=self.model_version,
                    int8=source.name in self.int8,
                    risk=self.risk,
                    key=key,
                    policy=policy,
                )
            console.print(f"exported   {', '.join(names)}")
        console.print(_table(entries))
        for warning in _int8_losses(entries):
            console.print(warning)

    def _require_known(self, sources: list[Source]) -> None:
        """Raise `ExportError` if `--int8` names a model that is not exported."""
        names = [source.name for source in sources]
        missing = [name for name in self.int8 if name not in names]
        if missing and "int8" in self.model_fields_set:  # the default need not apply
            raise ExportError(f"--int8: {unknown('model', missing[0], names)}")


def _table(entries: list[ModelEntry]) -> Table:
    table = Table(title="model repository", box=SIMPLE_HEAD)
    for heading in ("model", "layers", "file", "test errors", "flipped", "Δ logit"):
        justify: Literal["left", "right"] = "left" if heading in {"model", "layers"} else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != "layers")
    for entry in entries:
        manifest = entry.manifest
        table.add_row(
            manifest.name,
            manifest.architecture,
            f"{manifest.size_bytes / 1e3:,.1f} kB",
            str(manifest.test_errors),
            str(manifest.parity.disagreements),
            f"{manifest.parity.largest_difference:.1e}",
        )
    digits = entries[0].manifest.parity.images
    table.caption = f"{digits:,} test digits; flipped and Δ logit: against the PyTorch network"
    return table


def _int8_losses(entries: list[ModelEntry]) -> Iterator[str]:
    """Yield a warning for each int8 model with more than `MAX_EXTRA_ERRORS` extra test errors."""
    manifests = {entry.name: entry.manifest for entry in entries}
    for name, int8 in manifests.items():
        fp32 = manifests.get(name.removesuffix("-int8"))
        if int8.precision == "int8" and fp32 and int8.test_errors - fp32.test_errors > MAX_EXTRA_ERRORS:
            parameters = int8.quantisation or {}
            yield (
                f"{name} has {int8.test_errors - fp32.test_errors} test errors more than {fp32.name} "
                f"(up to {MAX_EXTRA_ERRORS} are usual); best of the quantisations tried on validation digits: "
                f"percentile {parameters['percentile']:g}"
            )
